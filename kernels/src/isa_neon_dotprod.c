// ARM with dot products (Apple M1 and later, Cortex-A76 and later). Correct under emulation; not timed.
#include "neon.h"
#define ISA_NAME "neon-dotprod"
#define NAME(x) ek_neon_dotprod_##x
#define DP_BEGIN(N) UNROLL EACH acc[n] = V_ZERO();
#define DP_BEGIN_FROM(N, x) UNROLL EACH acc[n] = V_SET1(x);
#define DP(N, u, x, i, max) do { \
        const VI u_ = (u); \
        UNROLL EACH acc[n] = V_U32(vdotq_s32(V_S32(acc[n]), V_S8(u_), V_S8(V_BC((x) + n)))); \
    } while (0)
#define DP_END(N)
#include "kernel.inc"
static int NAME(supported)(void) { return ek_has_dotprod(); }
