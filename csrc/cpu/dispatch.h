// The choice of the instruction set at run time.
//
// The extension is compiled for the baseline machine; only functions marked with a target attribute use more. Kernels
// stand in tables, one for each instruction set (csrc/README.md says in which files), and `Versions` picks one:
//
//     constexpr cpu::Versions<const RowKernels> kVersions = LAYERCOOP_VERSIONS(kRowKernels);
//     kVersions.get()->add(...);
//
// Small kernels may stand in one file instead, as those of masks.cpp:
//
//     static void add_portable(...);
//     #if LAYERCOOP_X86
//     LAYERCOOP_AVX2 static void add_avx2(...);
//     constexpr cpu::Versions<AddFn> kAdd{add_portable, add_avx2};  // no AVX-512 version: that level uses AVX2's
//     #else
//     constexpr cpu::Versions<AddFn> kAdd{add_portable};  // on ARM too, where that level is NEON's as well
//     #endif
//
// A new instruction set: csrc/README.md says what it needs.
#pragma once

#include <string>
#include <vector>

#if defined(__x86_64__)
#define LAYERCOOP_X86 1
#define LAYERCOOP_AVX2 __attribute__((target("avx2,fma,f16c")))
#define LAYERCOOP_AVX2_UNFUSED __attribute__((target("avx2,f16c,popcnt")))
#define LAYERCOOP_AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#define LAYERCOOP_AVX512_VNNI __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define LAYERCOOP_AVX512_BF16 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define LAYERCOOP_AMX \
  __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8,amx-bf16")))
#else
#define LAYERCOOP_X86 0
#endif

// Every 64-bit ARM processor has NEON, so that level needs no target.
#if defined(__aarch64__)
#define LAYERCOOP_ARM 1
#define LAYERCOOP_NEON_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#define LAYERCOOP_NEON_I8MM __attribute__((target("arch=armv8.2-a+dotprod+i8mm")))
#define LAYERCOOP_NEON_BF16 __attribute__((target("arch=armv8.2-a+bf16")))
#else
#define LAYERCOOP_ARM 0
#endif

namespace layercoop::cpu {

// In ascending order: a machine that has a level has all lower ones of its kind, x86 or ARM.
enum class Isa { portable, neon, avx2, avx512 };

// The level in force; one relaxed atomic load.
Isa isa() noexcept;

// "portable", "neon", "avx2" or "avx512".
std::string isa_name(Isa level);

// The levels this machine can run, lowest first.
std::vector<Isa> available_isas();

// Puts a level in force. Throws std::invalid_argument for an unknown name or a level that this machine lacks.
void set_isa(const std::string& name);

// Puts LAYERCOOP_ISA in force, or the machine's best level where the variable is unset. Throws as set_isa does.
// LAYERCOOP_DOTS=0 turns the dot products below off, and the products of matrices with them; LAYERCOOP_MATRICES=0 turns
// the latter off alone. 1 leaves them on, and anything else throws.
void set_isa_from_environment();

// Dot products of 8-bit integers (AVX512-VNNI, ARM's DotProd) and of bf16 numbers (AVX512-BF16, ARM's BF16), and
// products of small matrices of 8-bit integers (AMX, ARM's I8MM) and of bf16 numbers (AMX). They are not levels of
// their own: they serve single formats at the highest level of a kind of machine. True at that level where the machine
// has them, unless they are turned off. A machine that has products of matrices has the dot products too.
bool uses_int8_dots() noexcept;
bool uses_int8_matrices() noexcept;
bool uses_bf16_dots() noexcept;
bool uses_bf16_matrices() noexcept;
void allow_dots(bool allowed) noexcept;
void allow_matrices(bool allowed) noexcept;

// The versions of a table of kernels, called `name`Portable, `name`Avx2, `name`Avx512 and `name`Neon.
#if LAYERCOOP_X86
#define LAYERCOOP_VERSIONS(name) {&name##Portable, &name##Avx2, &name##Avx512}
#elif LAYERCOOP_ARM
#define LAYERCOOP_VERSIONS(name) {&name##Portable, &name##Neon}
#else
#define LAYERCOOP_VERSIONS(name) {&name##Portable}
#endif

template <typename Fn>
struct Versions {
  Fn* portable;
#if LAYERCOOP_X86
  Fn* avx2 = nullptr;
  Fn* avx512 = nullptr;
#elif LAYERCOOP_ARM
  Fn* neon = nullptr;
#endif

  // The version of the level in force, or of the next lower level that has one.
  Fn* get() const noexcept {
    [[maybe_unused]] const Isa level = isa();
#if LAYERCOOP_X86
    if (level >= Isa::avx512 && avx512 != nullptr) return avx512;
    if (level >= Isa::avx2 && avx2 != nullptr) return avx2;
#elif LAYERCOOP_ARM
    if (level == Isa::neon && neon != nullptr) return neon;
#endif
    return portable;
  }
};

}  // namespace layercoop::cpu
