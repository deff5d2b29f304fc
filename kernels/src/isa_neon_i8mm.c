// ARM with matrix products of bytes (Apple M2 and later, Cortex-X2 and later). Correct under emulation; not timed.
#include "neon.h"
#define ISA_NAME "neon-i8mm"
#define NAME(x) ek_neon_i8mm_##x
// smmla multiplies 2 rows of 8 bytes with 2 columns of 8. Two words of four rows, zipped, are two such pairs of rows;
// two words of two rows of activations are a pair of columns. pair[n][h]: rows 2h and 2h + 1 by activations n and n + 1.
// The last of an odd number takes the dot product.
#define DP_BEGIN_FROM(N, x) \
    int32x4_t pair[TILE][2]; \
    VI before = V_ZERO(); \
    (void)before; \
    UNROLL EACH { \
        acc[n] = V_SET1(x); \
        pair[n][0] = pair[n][1] = vdupq_n_s32(0); \
    }
#define DP_BEGIN(N) DP_BEGIN_FROM(N, 0)
#define DP(N, u, x, i, max) do { \
        const VI u_ = (u); \
        const int32_t *x_ = (x); \
        if ((N) & 1) { \
            const int n = (N) - 1; \
            acc[n] = V_U32(vdotq_s32(V_S32(acc[n]), V_S8(u_), V_S8(V_BC(x_ + n)))); \
        } \
        if ((i) % 2 == 0) before = u_; \
        else { \
            const int8x16_t r0 = V_S8(vzip1q_u32(before, u_)), r1 = V_S8(vzip2q_u32(before, u_)); \
            UNROLL for (int n = 0; n + 1 < (N); n += 2) { \
                const int32x2_t a0 = vld1_s32(x_ - (N) + n), a1 = vld1_s32(x_ + n); \
                const int8x16_t columns = vreinterpretq_s8_s32(vcombine_s32(vzip1_s32(a0, a1), vzip2_s32(a0, a1))); \
                pair[n][0] = vmmlaq_s32(pair[n][0], r0, columns); \
                pair[n][1] = vmmlaq_s32(pair[n][1], r1, columns); \
            } \
        } \
    } while (0)
#define DP_END(N) \
    UNROLL for (int n = 0; n + 1 < (N); n += 2) { \
        acc[n] = vaddq_u32(acc[n], V_U32(vuzp1q_s32(pair[n][0], pair[n][1]))); \
        acc[n + 1] = vaddq_u32(acc[n + 1], V_U32(vuzp2q_s32(pair[n][0], pair[n][1]))); \
    }
#include "kernel.inc"
static int NAME(supported)(void) { return ek_has_i8mm(); }
