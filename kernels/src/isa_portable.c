// Any machine that GCC or Clang compiles for, and little-endian: vectors that the compiler makes of whatever there is.
#include "ek.h"
#define ISA_NAME "portable"
#define NAME(x) ek_portable_##x
#define LANES 4
#define TILE 4
#define UNROLL  // small code, compiled quickly
#define AHEAD(k, steps, lines)
typedef uint32_t VI __attribute__((vector_size(16)));
typedef float VF __attribute__((vector_size(16)));
typedef int32_t VS __attribute__((vector_size(16)));
#define INLINE static inline __attribute__((always_inline))
#define LANE for (int l = 0; l < LANES; l++)
INLINE VI V_LOAD(const void *p) { VI x; memcpy(&x, p, sizeof x); return x; }
INLINE VI V_SET1(uint32_t x) { return (VI){x, x, x, x}; }
INLINE VF V_SET1F(float x) { return (VF){x, x, x, x}; }
#define V_AND(x, y) ((x) & (y))
#define V_OR(x, y) ((x) | (y))
#define V_XOR(x, y) ((x) ^ (y))
#define V_SUB(x, y) ((x) - (y))
#define V_MULLO(x, y) ((x) * (y))
#define V_AND_OR(x, m, y) (((x) & (m)) | (y))
#define V_SRL32(x, k) ((x) >> (uint32_t)(k))
#define V_SLL32(x, k) ((x) << (uint32_t)(k))
#define V_SRA32(x, k) ((VI)((VS)(x) >> (k)))
#define V_ZERO() V_SET1(0)
#define V_ZEROF() V_SET1F(0)
INLINE VF V_CVT(VI x) { VF y; LANE y[l] = (float)(int32_t)x[l]; return y; }
#define V_MUL(x, y) ((x) * (y))
#define V_ADDF(x, y) ((x) + (y))
#define V_AS_F(x) ((VF)(x))
#define V_NEG(x) (-(x))
// a · b + c with one rounding. Without an instruction: the product is exact in double; their sum is rounded to odd
// (Boldo and Melquiond), so that rounding it once more to float cannot go wrong.
INLINE float ek_fma(float a, float b, float c) {
#if defined(__FP_FAST_FMAF) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    const double p = (double)a * b, s = p + c, t = s - p, error = (p - (s - t)) + (c - t);
    uint64_t bits;
    memcpy(&bits, &s, 8);
    if (error * 0 != 0 || error == 0 || bits & 1) return (float)s;  // infinite, exact, odd
    bits += (error > 0) == (s > 0) ? 1 : (uint64_t)-1;
    double odd;
    memcpy(&odd, &bits, 8);
    return (float)odd;
#endif
}
INLINE VF V_FMA(VF a, VF b, VF c) { VF y; LANE y[l] = ek_fma(a[l], b[l], c[l]); return y; }
#define V_BC(p) V_SET1((uint32_t)*(p))
#define V_BCF(p) ((VF)V_BC(p))
INLINE VI V_DP2(VI acc, VI a, VI b) {
    LANE acc[l] += (uint32_t)((int16_t)a[l] * (int16_t)b[l] + (int16_t)(a[l] >> 16) * (int16_t)(b[l] >> 16));
    return acc;
}
INLINE VF V_HALF_LO(VI x) { VF y; LANE y[l] = ek_half((uint16_t)x[l]); return y; }
#define V_HALF_HI(x) V_HALF_LO((x) >> 16)
INLINE VI ek_widen(const void *p) { uint16_t h[LANES]; memcpy(h, p, sizeof h); return (VI){h[0], h[1], h[2], h[3]}; }
#define V_HALFS(p) V_HALF_LO(ek_widen(p))
#define V_BFLOATS(p) ((VF)(ek_widen(p) << 16))
INLINE VI V_TABLE(const int8_t *t, VI x) {
    VI y = {0};
    LANE for (int b = 0; b < 4; b++) y[l] |= (uint32_t)(uint8_t)t[x[l] >> 8 * b & 15] << 8 * b;
    return y;
}
INLINE void V_STOREF(float *p, VF x) { memcpy(p, &x, sizeof x); }
#define HIGH_SCALE 1.0f
#define V_HIGH(q) V_AND(V_SRL32(q, 4), V_SET1(0x0f0f0f0f))
#define DP_SIGNED 1
// Four bytes in each lane: products of the even and of the odd ones, which 16 bits hold, as does the sum of two.
typedef int16_t V16 __attribute__((vector_size(16)));
INLINE VI ek_dp4(VI acc, VI u, VI x) {
    const V16 even = ((V16)u << 8 >> 8) * ((V16)x << 8 >> 8), odd = ((V16)u >> 8) * ((V16)x >> 8);
    const VI sum = (VI)(even + odd);
    return acc + (VI)((VS)(sum << 16) >> 16) + (VI)((VS)sum >> 16);
}
#define DP_BEGIN(N) UNROLL EACH acc[n] = V_ZERO();
#define DP_BEGIN_FROM(N, x) UNROLL EACH acc[n] = V_SET1((uint32_t)(x));
#define DP(N, u, x, i, max) do { VI u_ = (u); UNROLL EACH acc[n] = ek_dp4(acc[n], u_, V_BC((x) + n)); } while (0)
#define DP_END(N)
#undef INLINE
#include "kernel.inc"
static int NAME(supported)(void) { return 1; }
