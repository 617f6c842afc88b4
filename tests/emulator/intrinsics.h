// CUDA's atomics, integer and rounding intrinsics for the host. Threads of a launch share one OS thread, so an atomic
// is a plain read and write, of which the checker hears as one thing. The overloads are CUDA's own, so that an unsigned
// long* fails here as it does with nvcc.
#pragma once

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

#define EMULATOR_UNCHECKED __attribute__((noinline, no_sanitize("thread"))) inline

#define EMULATOR_ATOMIC(name, type, expression)                                \
  EMULATOR_UNCHECKED type name(type* address, type value) {                    \
    emulator::note_atomic(address, sizeof(type), __builtin_return_address(0)); \
    type old = *address;                                                       \
    *address = static_cast<type>(expression);                                  \
    return old;                                                                \
  }
#define EMULATOR_ATOMIC_INTEGERS(name, expression) \
  EMULATOR_ATOMIC(name, int, expression)           \
  EMULATOR_ATOMIC(name, unsigned, expression)      \
  EMULATOR_ATOMIC(name, unsigned long long, expression)
EMULATOR_ATOMIC_INTEGERS(atomicAdd, old + value)
EMULATOR_ATOMIC(atomicAdd, float, old + value)
EMULATOR_ATOMIC(atomicAdd, double, old + value)
EMULATOR_ATOMIC(atomicSub, int, old - value)
EMULATOR_ATOMIC(atomicSub, unsigned, old - value)
EMULATOR_ATOMIC_INTEGERS(atomicMin, value < old ? value : old)
EMULATOR_ATOMIC(atomicMin, long long, value < old ? value : old)
EMULATOR_ATOMIC_INTEGERS(atomicMax, value > old ? value : old)
EMULATOR_ATOMIC(atomicMax, long long, value > old ? value : old)
EMULATOR_ATOMIC_INTEGERS(atomicExch, value)
EMULATOR_ATOMIC(atomicExch, float, value)
EMULATOR_ATOMIC_INTEGERS(atomicAnd, old& value)
EMULATOR_ATOMIC_INTEGERS(atomicOr, old | value)
EMULATOR_ATOMIC_INTEGERS(atomicXor, old ^ value)
#undef EMULATOR_ATOMIC_INTEGERS
#undef EMULATOR_ATOMIC

#define EMULATOR_CAS(type)                                                     \
  EMULATOR_UNCHECKED type atomicCAS(type* address, type compare, type value) { \
    emulator::note_atomic(address, sizeof(type), __builtin_return_address(0)); \
    type old = *address;                                                       \
    if (old == compare) *address = value;                                      \
    return old;                                                                \
  }
EMULATOR_CAS(int)
EMULATOR_CAS(unsigned)
EMULATOR_CAS(unsigned long long)
#undef EMULATOR_CAS
#undef EMULATOR_UNCHECKED

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

#define EMULATOR_BITS(name, to, from) \
  inline to name(from x) {            \
    to y;                             \
    memcpy(&y, &x, sizeof(y));        \
    return y;                         \
  }
EMULATOR_BITS(__float_as_uint, unsigned, float)
EMULATOR_BITS(__uint_as_float, float, unsigned)
EMULATOR_BITS(__float_as_int, int, float)
EMULATOR_BITS(__int_as_float, float, int)
EMULATOR_BITS(__double_as_longlong, long long, double)
EMULATOR_BITS(__longlong_as_double, double, long long)
#undef EMULATOR_BITS

// Single roundings, which nvcc does not contract into a fused multiply-add.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline double rsqrt(double a) { return 1.0 / sqrt(a); }

// CUDA has these without std::, and on floating point they are fmin and fmax: the number, where the other is NaN.
template <class T>
T min(T a, T b) {
  if constexpr (std::is_floating_point<T>::value) return std::fmin(a, b);
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  if constexpr (std::is_floating_point<T>::value) return std::fmax(a, b);
  return a < b ? b : a;
}
