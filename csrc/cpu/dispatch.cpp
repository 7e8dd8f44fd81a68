#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if LAYERCOOP_ARM && defined(__linux__)
#include <sys/auxv.h>
#elif LAYERCOOP_ARM && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace layercoop::cpu {
namespace {

constexpr Isa kLevels[] = {Isa::portable, Isa::neon, Isa::avx2, Isa::avx512};

std::atomic<Isa> current{Isa::portable};
std::atomic<bool> dots_allowed{true};

bool machine_has(Isa level) {
#if LAYERCOOP_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  switch (level) {
    case Isa::portable: return true;
    case Isa::neon: return false;
    case Isa::avx2: return avx2;
    case Isa::avx512: break;
  }
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return level == Isa::portable || (level == Isa::neon && LAYERCOOP_ARM);
#endif
}

#if LAYERCOOP_X86

bool machine_has_int8_dots() { return machine_has(Isa::avx512) && __builtin_cpu_supports("avx512vnni"); }
bool machine_has_int8_matrices() { return false; }
bool machine_has_bf16_dots() { return machine_has(Isa::avx512) && __builtin_cpu_supports("avx512bf16"); }

#elif LAYERCOOP_ARM && defined(__linux__)

// The bits of Linux' arch/arm64/include/uapi/asm/hwcap.h.
bool machine_has_int8_dots() { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; }
bool machine_has_int8_matrices() { return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }
bool machine_has_bf16_dots() { return (getauxval(AT_HWCAP2) >> 14 & 1) != 0; }

#elif LAYERCOOP_ARM && defined(__APPLE__)

bool has_feature(const char* name) {
  int value = 0;
  std::size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

bool machine_has_int8_dots() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
bool machine_has_int8_matrices() { return has_feature("hw.optional.arm.FEAT_I8MM"); }
bool machine_has_bf16_dots() { return has_feature("hw.optional.arm.FEAT_BF16"); }

#else

bool machine_has_int8_dots() { return false; }
bool machine_has_int8_matrices() { return false; }
bool machine_has_bf16_dots() { return false; }

#endif

bool dots_in_force() {
  const Isa level = isa();
  return (level == Isa::avx512 || level == Isa::neon) && dots_allowed.load(std::memory_order_relaxed);
}

std::string names_of(const std::vector<Isa>& levels) {
  std::string names;
  for (const Isa level : levels) names += (names.empty() ? "" : ", ") + isa_name(level);
  return names;
}

// The level called `name`. Error messages begin with `source`, the function or environment variable that gave the name.
Isa parse(const std::string& name, const std::string& source) {
  for (const Isa level : kLevels) {
    if (name != isa_name(level)) continue;
    if (machine_has(level)) return level;
    throw std::invalid_argument(source + ": this machine lacks '" + name + "'; it has " + names_of(available_isas()));
  }
  throw std::invalid_argument(source + ": unknown instruction set '" + name + "'; use one of " +
                              names_of(available_isas()));
}

}  // namespace

Isa isa() noexcept { return current.load(std::memory_order_relaxed); }

std::string isa_name(Isa level) {
  switch (level) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    case Isa::neon: return "neon";
    case Isa::portable: break;
  }
  return "portable";
}

std::vector<Isa> available_isas() {
  std::vector<Isa> levels;
  for (const Isa level : kLevels) {
    if (machine_has(level)) levels.push_back(level);
  }
  return levels;
}

void set_isa(const std::string& name) { current.store(parse(name, "set_isa"), std::memory_order_relaxed); }

void set_isa_from_environment() {
  const char* text = std::getenv("LAYERCOOP_DOTS");
  const std::string dots = text != nullptr ? text : "1";
  if (dots != "0" && dots != "1") {
    throw std::invalid_argument("LAYERCOOP_DOTS: '" + dots + "' is neither 0 nor 1");
  }
  allow_dots(dots == "1");
  const char* name = std::getenv("LAYERCOOP_ISA");
  current.store(name != nullptr ? parse(name, "LAYERCOOP_ISA") : available_isas().back(), std::memory_order_relaxed);
}

bool uses_int8_dots() noexcept {
  static const bool found = machine_has_int8_dots();
  return found && dots_in_force();
}

bool uses_int8_matrices() noexcept {
  static const bool found = machine_has_int8_matrices();
  return found && dots_in_force();
}

bool uses_bf16_dots() noexcept {
  static const bool found = machine_has_bf16_dots();
  return found && dots_in_force();
}

void allow_dots(bool allowed) noexcept { dots_allowed.store(allowed, std::memory_order_relaxed); }

}  // namespace layercoop::cpu
