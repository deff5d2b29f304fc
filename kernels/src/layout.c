// The packed layout (LAYOUT.md): which formats there are, packing, and single rows as floats.
#include "ek.h"
#include "export.h"

EK_API int ek_layout(void) { return EK_LAYOUT; }

static const ek_format FORMATS[] = {
    // type, block, bytes, words, half, activations, filled
    {EK_F32, 32, 128, 32, 0, EK_ACT_F32, 1},
    {EK_F16, 32, 64, 16, 0, EK_ACT_F16, 1},    {EK_BF16, 32, 64, 16, 0, EK_ACT_BF16, 1},
    {EK_Q4_0, 32, 18, 4, 1, EK_ACT_0, 0},      {EK_Q4_1, 32, 20, 5, 0, EK_ACT_0, 0},
    {EK_Q5_0, 32, 22, 5, 1, EK_ACT_0, 0},      {EK_Q5_1, 32, 24, 6, 0, EK_ACT_0, 0},
    {EK_Q8_0, 32, 34, 8, 1, EK_ACT_0, 0},      {EK_IQ4_NL, 32, 18, 4, 1, EK_ACT_0, 0},
    {EK_MXFP4, 32, 17, 4, 1, EK_ACT_0, 0},     {EK_Q2_K, 256, 84, 21, 0, EK_ACT_K, 0},
    {EK_Q3_K, 256, 110, 27, 1, EK_ACT_K, 0},   {EK_Q4_K, 256, 144, 36, 0, EK_ACT_K, 0},
    {EK_Q5_K, 256, 176, 44, 0, EK_ACT_K, 0},   {EK_Q6_K, 256, 210, 52, 1, EK_ACT_K, 0},
    {EK_IQ4_XS, 256, 136, 34, 0, EK_ACT_K, 0}, {EK_U4_32, 32, 19, 5, 0, EK_ACT_0, 1},
    {EK_U4_64, 64, 35, 9, 0, EK_ACT_0, 1},     {EK_U4_128, 128, 67, 17, 0, EK_ACT_0, 1},
    {EK_I8_64, 64, 66, 16, 1, EK_ACT_0, 1},
};

const ek_format *ek_format_of(int type) {
    for (size_t i = 0; i < sizeof FORMATS / sizeof *FORMATS; i++)
        if (FORMATS[i].type == type) return &FORMATS[i];
    return NULL;
}

static const ek_format *checked(int type, int64_t rows, int64_t columns) {
    const ek_format *f = ek_format_of(type);
    if (!f || rows < 1 || columns < 1 || rows > EK_MAX_ROWS || columns > EK_MAX_COLUMNS) return NULL;
    return columns % f->block && !f->filled ? NULL : f;
}

size_t ek_group_bytes(const ek_format *f, int columns) {
    size_t blocks = (size_t)ek_blocks(f, columns);
    return 64 * (blocks * (size_t)f->words + (f->half ? (blocks + 1) / 2 : 0));
}

EK_API size_t ek_packed_bytes(int type, int64_t rows, int64_t columns) {
    const ek_format *f = checked(type, rows, columns);
    return f ? (size_t)((rows + EK_ROWS - 1) / EK_ROWS) * ek_group_bytes(f, (int)columns) : 0;
}

// Floats of rows that are not whole blocks are stored without the filling. Bytes of one, 0 for other formats.
static int float_bytes(const ek_format *f) { return f->act == EK_ACT_F32 ? 4 : f->act == EK_ACT_F16 || f->act == EK_ACT_BF16 ? 2 : 0; }

static size_t stored_row(const ek_format *f, int columns) {
    return float_bytes(f) ? (size_t)float_bytes(f) * (size_t)columns : (size_t)ek_blocks(f, columns) * (size_t)f->bytes;
}

EK_API size_t ek_stored_bytes(int type, int64_t rows, int64_t columns) {
    const ek_format *f = checked(type, rows, columns);
    return f ? (size_t)rows * stored_row(f, (int)columns) : 0;
}

// The words and the 16-bit scale of a stored block.
static void split(const ek_format *f, const uint8_t *s, uint32_t *w, uint16_t *half) {
    const size_t bytes = 4 * (size_t)f->words;
    switch (f->type) {
    case EK_Q3_K: case EK_Q6_K:  // the scale comes last
        memcpy(w, s, bytes);
        memcpy(half, s + bytes, 2);
        return;
    case EK_MXFP4:  // an exponent: 2^(e − 128), which is a bfloat16
        *half = s[0] < 2 ? (uint16_t)(0x20 << s[0]) : (uint16_t)((s[0] - 1) << 7);
        memcpy(w, s + 1, bytes);
        return;
    case EK_U4_32: case EK_U4_64: case EK_U4_128:  // scale and zero point, then nibbles in the order of Q4_0
        w[0] = (uint32_t)s[0] | (uint32_t)s[1] << 8 | (uint32_t)s[2] << 16;
        for (int i = 0; i < f->block / 32; i++) {
            const uint8_t *in = s + 3 + 16 * i;
            uint8_t out[16];
            for (int j = 0; j < 16; j++) {
                int low = in[j / 2] >> 4 * (j % 2) & 15, high = in[8 + j / 2] >> 4 * (j % 2) & 15;
                out[j] = (uint8_t)(low | high << 4);
            }
            memcpy(w + 1 + 4 * i, out, 16);
        }
        return;
    default:
        if (f->half) memcpy(half, s, 2);
        memcpy(w, s + (f->half ? 2 : 0), bytes);
    }
}

EK_API void ek_pack(int type, int rows, int columns, const uint8_t *stored, uint8_t *packed) {
    const ek_format *f = ek_format_of(type);
    const size_t row_bytes = stored_row(f, columns), group_bytes = ek_group_bytes(f, columns);
    memset(packed, 0, ek_packed_bytes(type, rows, columns));
    for (int row = 0; row < rows; row++) {
        const uint8_t *s = stored + (size_t)row * row_bytes, *end = s + row_bytes;
        uint8_t *group = packed + (size_t)(row / EK_ROWS) * group_bytes;
        const int r = row % EK_ROWS;
        for (int b = 0; b < ek_blocks(f, columns); b++, s += f->bytes) {
            uint32_t w[64];
            uint16_t half = 0;
            uint8_t last[128] = {0};  // a short last block of floats
            const uint8_t *from = s;
            if (end - s < f->bytes) from = memcpy(last, s, (size_t)(end - s));
            split(f, from, w, &half);
            const uint8_t *halves = NULL;
            uint8_t *words = group + (ek_block(f, group, b, &halves) - group) + 4 * r;
            for (int i = 0; i < f->words; i++) memcpy(words + 64 * i, w + i, 4);
            if (f->half) memcpy(group + (halves - group) + 2 * r, &half, 2);
        }
    }
}

// One row of a packed block as floats, computed as gguf's dequantization does it. c: the words as bytes.
static void k_scale(const uint8_t *s, int j, int *scale, int *minimum) {
    *scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    *minimum = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
}

static void block_k(int type, const uint8_t *c, float d, float *y) {
    uint16_t dm[2];
    if (type == EK_Q2_K) {
        memcpy(dm, c + 80, 4);
        for (int i = 0; i < 256; i++) {
            int scale = c[i / 16], q = c[16 + i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3;
            y[i] = ek_half(dm[0]) * (float)(scale & 15) * (float)q - ek_half(dm[1]) * (float)(scale >> 4);
        }
    } else if (type == EK_Q3_K) {
        const uint8_t *s = c + 96;
        for (int i = 0; i < 256; i++) {
            int j = i / 16, low = s[j % 8] >> 4 * (j / 8) & 15, high = s[8 + j % 4] >> 2 * (j / 4) & 3;
            int q = c[32 + i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3, bit = c[i % 32] >> i / 32 & 1;
            y[i] = d * (float)((low | high << 4) - 32) * (float)(q - (bit ? 0 : 4));
        }
    } else if (type == EK_Q6_K) {
        for (int i = 0; i < 256; i++) {
            int part = i / 32 % 4, low = c[i / 128 * 64 + i % 64] >> 4 * (part / 2) & 15;
            int high = c[128 + i / 128 * 32 + i % 32] >> 2 * part & 3;
            y[i] = d * (float)(int8_t)c[192 + i / 16] * (float)((low | high << 4) - 32);
        }
    } else if (type == EK_IQ4_XS) {
        static const int8_t VALUES[16] = {EK_IQ4};
        memcpy(dm, c, 4);
        for (int i = 0; i < 256; i++) {
            int j = i / 32, low = c[4 + j / 2] >> 4 * (j % 2) & 15, high = dm[1] >> 2 * j & 3;
            int q = c[8 + 16 * j + i % 16] >> 4 * (i / 16 % 2) & 15;
            y[i] = ek_half(dm[0]) * (float)((low | high << 4) - 32) * (float)VALUES[q];
        }
    } else {  // Q4_K, Q5_K
        memcpy(dm, c, 4);
        const uint8_t *codes = c + (type == EK_Q5_K ? 48 : 16);
        for (int i = 0; i < 256; i++) {
            int j = i / 32, q = codes[j / 2 * 32 + i % 32] >> 4 * (j % 2) & 15, scale, minimum;
            if (type == EK_Q5_K) q |= (c[16 + i % 32] >> j & 1) << 4;
            k_scale(c + 4, j, &scale, &minimum);
            y[i] = ek_half(dm[0]) * (float)scale * (float)q - ek_half(dm[1]) * (float)minimum;
        }
    }
}

static void block_32(const ek_format *f, const uint8_t *c, uint16_t half, float *y) {
    static const int8_t IQ4[16] = {EK_IQ4}, FP4[16] = {EK_FP4};
    uint16_t first[2];
    uint32_t fifth;
    memcpy(first, c, 4);
    const float d = f->half ? ek_half(half) : ek_half(first[0]);
    for (int i = 0; i < f->block; i++) {
        const int k = i % 32, shift = k < 16 ? 0 : 4;
#define NIBBLE(start) ((c[(start) + 16 * (i / 32) + k % 16] >> shift) & 15)
        switch (f->type) {
        case EK_Q4_0: y[i] = d * (float)(NIBBLE(0) - 8); break;
        case EK_Q4_1: y[i] = d * (float)NIBBLE(4) + ek_half(first[1]); break;
        case EK_Q5_0:
            memcpy(&fifth, c, 4);
            y[i] = d * (float)((NIBBLE(4) | (int)(fifth >> k & 1) << 4) - 16);
            break;
        case EK_Q5_1:
            memcpy(&fifth, c + 4, 4);
            y[i] = d * (float)(NIBBLE(8) | (int)(fifth >> k & 1) << 4) + ek_half(first[1]);
            break;
        case EK_IQ4_NL: y[i] = d * (float)IQ4[NIBBLE(0)]; break;
        case EK_MXFP4: y[i] = ek_bfloat(half) * (float)FP4[NIBBLE(0)]; break;
        case EK_Q8_0: case EK_I8_64: y[i] = d * (float)(int8_t)c[i]; break;
        default: y[i] = d * (float)(NIBBLE(4) - (first[1] & 255));  // U4
        }
#undef NIBBLE
    }
}

void ek_get_row(const ek_matrix *m, int row, float *out) {
    const ek_format *f = m->format;
    const uint8_t *group = m->data + (size_t)(row / EK_ROWS) * ek_group_bytes(f, m->columns);
    const int r = row % EK_ROWS;
    for (int b = 0; b < ek_blocks(f, m->columns); b++) {
        uint32_t w[64];
        uint16_t half = 0, h;
        float y[256];
        const uint8_t *halves = NULL, *words = ek_block(f, group, b, &halves), *c = (const uint8_t *)w;
        for (int i = 0; i < f->words; i++) memcpy(w + i, words + 64 * i + 4 * r, 4);
        if (f->half) memcpy(&half, halves + 2 * r, 2);
        if (f->type == EK_F32) memcpy(y, w, sizeof w / 2);
        else if (float_bytes(f))
            for (int i = 0; i < f->block; i++) {
                memcpy(&h, c + 2 * i, 2);
                y[i] = f->type == EK_F16 ? ek_half(h) : ek_bfloat(h);
            }
        else if (f->block == 256) block_k(f->type, c, ek_half(half), y);
        else block_32(f, c, half, y);
        const int left = m->columns - b * f->block, count = left < f->block ? left : f->block;
        memcpy(out + (size_t)b * (size_t)f->block, y, (size_t)count * sizeof *y);
    }
}
