// Products with GGUF's own quantized blocks. LAYOUT.md describes the packed matrices.
#ifndef EK_H
#define EK_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernels need a little-endian machine"
#endif
_Static_assert(sizeof(size_t) >= 8, "the kernels need 64-bit addresses: the sizes of matrices are not checked for overflow");

enum {
    EK_LAYOUT = 1,         // the version of LAYOUT.md, as in native.py
    EK_ROWS = 16,          // rows of a group
    EK_STRIP = 64,         // rows of activations that pass over a group of weights while it is in the cache
    EK_MAX_COLUMNS = 1 << 24,
    EK_MAX_ROWS = 1 << 24,
    EK_MAX_HEAD = 1024,
};

// GGUF's numbers of its types; from 1000 on, this project's own formats (edgespec/export/quants.py).
enum {
    EK_F32 = 0, EK_F16 = 1, EK_Q4_0 = 2, EK_Q4_1 = 3, EK_Q5_0 = 6, EK_Q5_1 = 7, EK_Q8_0 = 8, EK_Q2_K = 10, EK_Q3_K = 11,
    EK_Q4_K = 12, EK_Q5_K = 13, EK_Q6_K = 14, EK_IQ4_NL = 20, EK_IQ4_XS = 23, EK_BF16 = 30, EK_MXFP4 = 39,
    EK_U4_32 = 1000, EK_U4_64 = 1001, EK_U4_128 = 1002, EK_I8_64 = 1003,
};

// How the activations of a product are rounded. Each row of a tile has, for each block of it, these words:
enum {
    EK_ACT_K,     // Q8_K, 256 values: 64 words of codes, 4 + 8 of pairs of sums, 16 of −32 · sum, the scale
    EK_ACT_0,     // Q8_0 and Q8_1, 32 values: 8 words of codes, their sum, scale, scale · sum (both as half)
    EK_ACT_F32,   // 32 floats
    EK_ACT_F16,   // 32 floats rounded to half
    EK_ACT_BF16,  // 32 floats rounded to bfloat16
    EK_ACTS,
};
enum { AK_PAIR32 = 64, AK_PAIR16 = 68, AK_OFF16 = 76, AK_D = 92, AK_WORDS = 93 };
enum { A0_SUM = 8, A0_D = 9, A0_S = 10, A0_WORDS = 11, AF_WORDS = 32 };

typedef struct {
    int type;
    int block, bytes;  // weights and bytes of a block as it is stored
    int words, half;   // 32-bit words of a packed block; whether a 16-bit scale lies beside them
    int act;           // EK_ACT_…
    int filled;        // whether the last block of a row may be filled up
} ek_format;
const ek_format *ek_format_of(int type);  // NULL: unknown

typedef struct {
    const ek_format *format;
    int rows, columns;
    const uint8_t *data;
    int act_blocks;  // blocks of a row of the activations it is multiplied with: its own, or more
} ek_matrix;

// layout.c. 0 where the type is unknown or its blocks do not fill a row.
size_t ek_packed_bytes(int type, int64_t rows, int64_t columns);
size_t ek_stored_bytes(int type, int64_t rows, int64_t columns);
size_t ek_group_bytes(const ek_format *f, int columns);
void ek_pack(int type, int rows, int columns, const uint8_t *stored, uint8_t *packed);
void ek_get_row(const ek_matrix *m, int row, float *out);

static inline int ek_blocks(const ek_format *f, int columns) { return (columns + f->block - 1) / f->block; }

// Where block b of a group starts: its words, and its 16-bit scales. Two blocks share a line of scales.
static inline const uint8_t *ek_block(const ek_format *f, const uint8_t *group, int b, const uint8_t **halves) {
    if (!f->half) return group + (size_t)b * (size_t)f->words * 64;
    const uint8_t *pair = group + (size_t)(b / 2) * (size_t)(2 * f->words + 1) * 64;
    *halves = pair + 32 * (b & 1);
    return pair + 64 + (size_t)(b & 1) * (size_t)f->words * 64;
}

static inline int ek_act_block(int act) { return act == EK_ACT_K ? 256 : 32; }
static inline int ek_act_words(int act) { return act == EK_ACT_K ? AK_WORDS : act == EK_ACT_0 ? A0_WORDS : AF_WORDS; }
// Activation blocks of a row: all that the blocks of weights take.
static inline int ek_act_blocks(const ek_format *f, int columns) {
    return ek_blocks(f, columns) * (f->block / ek_act_block(f->act));
}

// Attention of one layer in one pass; layer.c has the shapes.
typedef struct {
    int heads, kv_heads, dim, rope_dims, interleaved, rotated, window;  // window: 0 where there is none
    float scale, epsilon;
    int n, length, capacity, tree;
    const float *qkv, *bias, *q_gain, *k_gain, *cosines, *sines;  // bias and gains: NULL where there are none
    const int32_t *parents, *positions;
    uint16_t *keys, *values;  // of this layer
    float *queries, *out;     // [n, heads, dim]
} ek_attention;

// One instruction set.
typedef struct {
    const char *name;
    int tile;
    int (*supported)(void);
    // Rounds rows i0 … i1 − 1 of x (n rows, `stride` floats apart) into the tiles of `act`.
    void (*quantize)(int act_kind, int blocks, int columns, const float *x, size_t stride, int n, int i0, int i1, uint8_t *act);
    // out[i · stride + r] = row i of the n activations · row r of the matrix, for its groups g0 … g1 − 1.
    void (*product)(const ek_matrix *m, int g0, int g1, const uint8_t *act, int n, float *out, size_t stride);
    void (*norm)(const float *x, const float *delta, const float *gain, float epsilon, int columns, float *out, float *sum);
    void (*gate)(int gelu, const float *gate, const float *up, int columns, float *out);
    void (*prepare)(const ek_attention *a, int row);
    // scratch: 8 · (dim + capacity) floats and n int32.
    void (*attend)(const ek_attention *a, int kv_head, int q0, int q1, float *scratch);
} ek_isa;
const ek_isa *ek_active(void);
int ek_set_isa(const char *name);  // NULL: the best one. 0: not compiled, or not on this processor
const char *ek_isa_name(void);
const char *ek_isa_at(int i);  // the name of the i-th that runs here, NULL at the end

// Numbers in 16 bits, exactly, on any machine.
static inline float ek_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline uint32_t ek_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }
static inline float ek_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest >= 0x7c00) return ek_float(sign | 0x7f800000 | rest << 13);
    float magnitude = ek_float((rest << 13) + 0x38000000);
    if (rest < 0x400) magnitude = (float)rest * 0x1p-24f;
    return ek_float(sign | ek_bits(magnitude));
}
static inline float ek_bfloat(uint16_t b) { return ek_float((uint32_t)b << 16); }
// Rounds to the nearest half or bfloat16, ties to even, and back.
static inline float ek_round_half(float f) {
    uint32_t bits = ek_bits(f), sign = bits & 0x80000000, rest = bits & 0x7fffffff;
    uint32_t normal = (rest + 0xfff + (rest >> 13 & 1)) & ~0x1fffu;
    uint32_t small = ek_bits((ek_float(rest) + 0.5f) - 0.5f);  // the last bit of 0.5 is a half's smallest number
    uint32_t out = rest < 0x38800000 ? small : normal;
    out = out > 0x477fe000 ? 0x7f800000 : out;
    return ek_float(sign | (rest > 0x7f800000 ? rest : out));
}
// The half nearest to f; beyond the largest, the largest.
static inline uint16_t ek_to_half(float f) {
    const uint32_t sign = ek_bits(f) >> 16 & 0x8000, rest = ek_bits(f) & 0x7fffffff;
    const uint32_t normal = ((rest + 0xfff + (rest >> 13 & 1)) >> 13) - (0x38000000 >> 13);
    const uint32_t small = ek_bits(ek_float(rest) + 0.5f) - 0x3f000000;
    uint32_t half = rest < 0x38800000 ? small : normal;
    half = rest > 0x7f800000 ? 0x7e00 : half > 0x7bff ? 0x7bff : half;
    return (uint16_t)(sign | half);
}
static inline float ek_round_bfloat(float f) {
    uint32_t bits = ek_bits(f);
    uint32_t out = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    return ek_float((bits & 0x7fffffff) > 0x7f800000 ? bits : out);
}

// Values that the codes of IQ4_NL, IQ4_XS and MXFP4 stand for (ggml-common.h).
#define EK_IQ4 -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
#define EK_FP4 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12
#endif
