// 256-bit vectors, for AVX2 and AVX-VNNI.
#include "cpu.h"
#include "ek.h"
#include <immintrin.h>
#define LANES 8
typedef __m256i VI;
typedef __m256 VF;
#define V_LOAD(p) _mm256_loadu_si256((const void *)(p))
#define V_SET1(x) _mm256_set1_epi32((int)(x))
#define V_SET1F(x) _mm256_set1_ps(x)
#define V_AND _mm256_and_si256
#define V_OR _mm256_or_si256
#define V_XOR _mm256_xor_si256
#define V_SUB _mm256_sub_epi32
#define V_MULLO _mm256_mullo_epi32
#define V_AND_OR(x, m, y) _mm256_or_si256(_mm256_and_si256(x, m), y)
#define V_SRL32(x, k) ((k) == 0 ? (x) : _mm256_srli_epi32(x, k))
#define V_SLL32(x, k) ((k) == 0 ? (x) : _mm256_slli_epi32(x, k))
#define V_SRA32(x, k) _mm256_srai_epi32(x, k)
#define V_ZERO() _mm256_setzero_si256()
#define V_ZEROF() _mm256_setzero_ps()
#define V_CVT _mm256_cvtepi32_ps
#define V_MUL _mm256_mul_ps
#define V_ADDF _mm256_add_ps
#define V_AS_F _mm256_castsi256_ps
#define V_NEG(x) _mm256_castsi256_ps(_mm256_xor_si256(_mm256_castps_si256(x), _mm256_set1_epi32((int)0x80000000)))
#define V_FMA _mm256_fmadd_ps
#define V_BC(p) _mm256_set1_epi32(*(p))
#define V_BCF(p) _mm256_castsi256_ps(_mm256_set1_epi32(*(p)))
static inline __attribute__((always_inline)) __m128i ek_low_halves(__m256i x) {
    x = _mm256_shuffle_epi8(x, _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1,
                                                0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1));
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(x, 0x08));
}
#define V_HALF_LO(x) _mm256_cvtph_ps(ek_low_halves(x))
#define V_HALF_HI(x) _mm256_cvtph_ps(ek_low_halves(_mm256_srli_epi32(x, 16)))
#define V_HALFS(p) _mm256_cvtph_ps(_mm_loadu_si128((const void *)(p)))
#define V_BFLOATS(p) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(p))), 16))
#define V_TABLE(t, x) _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)(t))), x)
#define V_STOREF _mm256_storeu_ps
