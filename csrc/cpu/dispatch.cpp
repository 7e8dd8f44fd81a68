#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if LAYERCOOP_X86 && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif LAYERCOOP_ARM && defined(__linux__)
#include <sys/auxv.h>
#elif LAYERCOOP_ARM && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace layercoop::cpu {
namespace {

constexpr Isa kLevels[] = {Isa::portable, Isa::neon, Isa::avx2, Isa::avx512};

std::atomic<Isa> current{Isa::portable};
std::atomic<bool> dots_allowed{true};
std::atomic<bool> matrices_allowed{true};

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
bool machine_has_bf16_dots() { return machine_has(Isa::avx512) && __builtin_cpu_supports("avx512bf16"); }

#if defined(__linux__)

// Linux gives a process AMX's registers when it asks for them, as their state is large. Processors that have them have
// the instructions for int8 and bf16 both.
bool granted_amx() {
  constexpr unsigned bf16 = 1u << 22, registers = 1u << 24, int8 = 1u << 25;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & bf16) == 0 || (edx & registers) == 0 || (edx & int8) == 0) return false;
  constexpr long request = 0x1023, state = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request, state) == 0;
}

bool machine_has_amx() {
  static const bool granted = machine_has_int8_dots() && machine_has_bf16_dots() && granted_amx();
  return granted;
}

#else

bool machine_has_amx() { return false; }

#endif

bool machine_has_int8_matrices() { return machine_has_amx(); }
bool machine_has_bf16_matrices() { return machine_has_amx(); }

#elif LAYERCOOP_ARM && defined(__linux__)

// The bits of Linux' arch/arm64/include/uapi/asm/hwcap.h.
bool machine_has_int8_dots() { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; }
bool machine_has_int8_matrices() { return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }
bool machine_has_bf16_dots() { return (getauxval(AT_HWCAP2) >> 14 & 1) != 0; }
bool machine_has_bf16_matrices() { return false; }  // where ARM has them, the dot products are made of them

#elif LAYERCOOP_ARM && defined(__APPLE__)

bool has_feature(const char* name) {
  int value = 0;
  std::size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

bool machine_has_int8_dots() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
bool machine_has_int8_matrices() { return has_feature("hw.optional.arm.FEAT_I8MM"); }
bool machine_has_bf16_dots() { return has_feature("hw.optional.arm.FEAT_BF16"); }
bool machine_has_bf16_matrices() { return false; }

#else

bool machine_has_int8_dots() { return false; }
bool machine_has_int8_matrices() { return false; }
bool machine_has_bf16_dots() { return false; }
bool machine_has_bf16_matrices() { return false; }

#endif

bool dots_in_force() {
  const Isa level = isa();
  return (level == Isa::avx512 || level == Isa::neon) && dots_allowed.load(std::memory_order_relaxed);
}

bool matrices_in_force() { return dots_in_force() && matrices_allowed.load(std::memory_order_relaxed); }

// Whether an environment variable is 1 or unset.
bool is_on(const std::string& variable) {
  const char* text = std::getenv(variable.c_str());
  const std::string value = text != nullptr ? text : "1";
  if (value != "0" && value != "1") throw std::invalid_argument(variable + ": '" + value + "' is neither 0 nor 1");
  return value == "1";
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
  allow_dots(is_on("LAYERCOOP_DOTS"));
  allow_matrices(is_on("LAYERCOOP_MATRICES"));
  const char* name = std::getenv("LAYERCOOP_ISA");
  current.store(name != nullptr ? parse(name, "LAYERCOOP_ISA") : available_isas().back(), std::memory_order_relaxed);
}

bool uses_int8_dots() noexcept {
  static const bool found = machine_has_int8_dots();
  return found && dots_in_force();
}

bool uses_int8_matrices() noexcept {
  static const bool found = machine_has_int8_matrices();
  return found && matrices_in_force();
}

bool uses_bf16_dots() noexcept {
  static const bool found = machine_has_bf16_dots();
  return found && dots_in_force();
}

bool uses_bf16_matrices() noexcept {
  static const bool found = machine_has_bf16_matrices();
  return found && matrices_in_force();
}

void allow_dots(bool allowed) noexcept { dots_allowed.store(allowed, std::memory_order_relaxed); }
void allow_matrices(bool allowed) noexcept { matrices_allowed.store(allowed, std::memory_order_relaxed); }

}  // namespace layercoop::cpu
