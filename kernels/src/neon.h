// 128-bit vectors of ARM, for the dot products (ARMv8.2) and for i8mm.
#include "cpu.h"
#include "ek.h"
#include <arm_neon.h>
#define LANES 4
#define TILE 8
typedef uint32x4_t VI;
typedef float32x4_t VF;
#define V_S8(x) vreinterpretq_s8_u32(x)
#define V_U32(x) vreinterpretq_u32_s32(x)
#define V_S32(x) vreinterpretq_s32_u32(x)
#define V_LOAD(p) vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)(p)))
#define V_SET1(x) vdupq_n_u32((uint32_t)(x))
#define V_SET1F(x) vdupq_n_f32(x)
#define V_AND vandq_u32
#define V_OR vorrq_u32
#define V_XOR veorq_u32
#define V_SUB vsubq_u32
#define V_MULLO vmulq_u32
#define V_AND_OR(x, m, y) vorrq_u32(vandq_u32(x, m), y)
#define V_SRL32(x, k) vshlq_u32(x, vdupq_n_s32(-(k)))
#define V_SLL32(x, k) vshlq_u32(x, vdupq_n_s32(k))
#define V_SRA32(x, k) V_U32(vshlq_s32(V_S32(x), vdupq_n_s32(-(k))))
#define V_ZERO() vdupq_n_u32(0)
#define V_ZEROF() vdupq_n_f32(0)
#define V_CVT(x) vcvtq_f32_s32(V_S32(x))
#define V_MUL vmulq_f32
#define V_ADDF vaddq_f32
#define V_AS_F vreinterpretq_f32_u32
#define V_NEG vnegq_f32
#define V_FMA(a, b, c) vfmaq_f32(c, a, b)
#define V_BC(p) vdupq_n_u32((uint32_t)*(p))
#define V_BCF(p) vreinterpretq_f32_u32(V_BC(p))
static inline __attribute__((always_inline)) VI ek_dp2(VI acc, VI a, VI b) {
    const int16x8_t x = vreinterpretq_s16_u32(a), y = vreinterpretq_s16_u32(b);
    return vaddq_u32(acc, V_U32(vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y))));
}
#define V_DP2 ek_dp2
#define V_HALF_LO(x) vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(x)))
#define V_HALF_HI(x) vcvt_f32_f16(vreinterpret_f16_u16(vshrn_n_u32(x, 16)))
#define V_16(p) vreinterpret_u16_u8(vld1_u8((const uint8_t *)(p)))
#define V_HALFS(p) vcvt_f32_f16(vreinterpret_f16_u16(V_16(p)))
#define V_BFLOATS(p) vreinterpretq_f32_u32(vshll_n_u16(V_16(p), 16))
#define V_TABLE(t, x) vreinterpretq_u32_s8(vqtbl1q_s8(vld1q_s8(t), vreinterpretq_u8_u32(x)))
#define V_STOREF vst1q_f32
#define HIGH_SCALE 1.0f
#define V_HIGH(q) vreinterpretq_u32_u8(vshrq_n_u8(vreinterpretq_u8_u32(q), 4))
#define DP_SIGNED 1
