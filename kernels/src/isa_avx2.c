// x86-64 with AVX2, FMA and F16C (since 2013).
#include "ymm.h"
#define ISA_NAME "avx2"
#define NAME(x) ek_avx2_##x
#define TILE 4
#define V_DP2(acc, a, b) _mm256_add_epi32(acc, _mm256_madd_epi16(a, b))
#define HIGH_SCALE 1.0f
#define V_HIGH(q) V_AND(V_SRL32(q, 4), V_SET1(0x0f0f0f0f))
// Unsigned by signed bytes, in pairs, to 16 bits, which hold 8 · 2 · 15 · 127, 4 · 2 · 31 · 127 and 2 · 2 · 63 · 127, so that as
// many words are added before they are widened; and 2 · 128 · 127 where both bytes are signed.
#define DP_SIGNED 1
#define DP_BEGIN(N) VI t16[TILE]; UNROLL EACH acc[n] = V_ZERO();
#define DP_BEGIN_FROM(N, x) VI t16[TILE]; UNROLL EACH acc[n] = V_SET1(x);
#define DP(N, u, x, i, max) do { \
        const int many_ = (max) <= 15 ? 8 : (max) <= 31 ? 4 : (max) <= 63 ? 2 : 1, count_ = (i) % many_; \
        VI u_ = (u); \
        UNROLL EACH { \
            VI x_ = V_BC((x) + n); \
            VI m_ = (max) > 127 ? _mm256_maddubs_epi16(_mm256_abs_epi8(u_), _mm256_sign_epi8(x_, u_)) : _mm256_maddubs_epi16(u_, x_); \
            t16[n] = count_ ? _mm256_add_epi16(t16[n], m_) : m_; \
            if (count_ == many_ - 1) acc[n] = _mm256_add_epi32(acc[n], _mm256_madd_epi16(t16[n], _mm256_set1_epi16(1))); \
        } \
    } while (0)
#define DP_END(N)
#include "kernel.inc"
static int NAME(supported)(void) { return ek_has_avx2(); }
