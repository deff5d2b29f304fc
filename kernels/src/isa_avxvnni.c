// x86-64 with 256-bit dot products (Intel since Alder Lake, AMD since Zen 5).
#include "ymm.h"
#define ISA_NAME "avx-vnni"
#define NAME(x) ek_avxvnni_##x
#define TILE 6
#define V_DP2 _mm256_dpwssd_avx_epi32
// High nibbles stay where they are: sixteen times the code, a sixteenth of the scale.
#define HIGH_SCALE 0.0625f
#define V_HIGH(q) V_AND(q, V_SET1(0xf0f0f0f0))
#define DP_SIGNED 0
#define DP_BEGIN(N) UNROLL EACH acc[n] = V_ZERO();
#define DP_BEGIN_FROM(N, x) UNROLL EACH acc[n] = V_SET1(x);
#define DP(N, u, x, i, max) do { VI u_ = (u); UNROLL EACH acc[n] = _mm256_dpbusd_avx_epi32(acc[n], u_, V_BC((x) + n)); } while (0)
#define DP_END(N)
#include "kernel.inc"
static int NAME(supported)(void) { return ek_has_avxvnni(); }
