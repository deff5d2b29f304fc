// x86-64 with AVX-512 and its dot products (Intel since 2019, AMD since Zen 4).
#include "cpu.h"
#include "ek.h"
#include <immintrin.h>
#define ISA_NAME "avx512-vnni"
#define NAME(x) ek_avx512vnni_##x
#define LANES 16
#define TILE 8
typedef __m512i VI;
typedef __m512 VF;
#define V_LOAD(p) _mm512_loadu_si512((const void *)(p))
#define V_SET1(x) _mm512_set1_epi32((int)(x))
#define V_SET1F(x) _mm512_set1_ps(x)
#define V_AND _mm512_and_si512
#define V_OR _mm512_or_si512
#define V_XOR _mm512_xor_si512
#define V_SUB _mm512_sub_epi32
#define V_MULLO _mm512_mullo_epi32
#define V_AND_OR(x, m, y) _mm512_ternarylogic_epi32(x, m, y, 0xea)
#define V_SRL32(x, k) ((k) == 0 ? (x) : _mm512_srli_epi32(x, (unsigned)(k)))
#define V_SLL32(x, k) ((k) == 0 ? (x) : _mm512_slli_epi32(x, (unsigned)(k)))
#define V_SRA32(x, k) _mm512_srai_epi32(x, (unsigned)(k))
#define V_ZERO() _mm512_setzero_si512()
#define V_ZEROF() _mm512_setzero_ps()
#define V_CVT _mm512_cvtepi32_ps
#define V_MUL _mm512_mul_ps
#define V_ADDF _mm512_add_ps
#define V_AS_F _mm512_castsi512_ps
#define V_NEG(x) _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), _mm512_set1_epi32((int)0x80000000)))
#define V_FMA _mm512_fmadd_ps
#define V_BC(p) _mm512_set1_epi32(*(p))
#define V_BCF(p) _mm512_castsi512_ps(_mm512_set1_epi32(*(p)))
#define V_DP2 _mm512_dpwssd_epi32
#define V_HALF_LO(x) _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x))
#define V_HALF_HI(x) _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)))
#define V_HALFS(p) _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(p)))
#define V_BFLOATS(p) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(p))), 16))
#define V_TABLE(t, x) _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const void *)(t))), x)
#define V_STOREF _mm512_storeu_ps
// High nibbles stay where they are: sixteen times the code, a sixteenth of the scale.
#define HIGH_SCALE 0.0625f
#define V_HIGH(q) V_AND(q, V_SET1(0xf0f0f0f0))
#define DP_SIGNED 0
#define DP_BEGIN(N) UNROLL EACH acc[n] = V_ZERO();
#define DP_BEGIN_FROM(N, x) UNROLL EACH acc[n] = V_SET1(x);
#define DP(N, u, x, i, max) do { VI u_ = (u); UNROLL EACH acc[n] = _mm512_dpbusd_epi32(acc[n], u_, V_BC((x) + n)); } while (0)
#define DP_END(N)
#include "kernel.inc"
static int NAME(supported)(void) { return ek_has_avx512vnni(); }
