// Random bytes in random shapes through every format and instruction set: fuzz ROUNDS [SEED].
// Exits with 1 where a row's bits depend on the number of rows or on the instruction set; prints a hash of all outputs.
#include "ek.h"
#include <stdio.h>
#include <stdlib.h>

int ek_multiply(int type, int rows, int columns, const uint8_t *packed, int n, const float *x, float *y);
int ek_rows(int type, int rows, int columns, const uint8_t *packed, int count, const int *ids, float *y);
void ek_pack(int type, int rows, int columns, const uint8_t *stored, uint8_t *packed);

static uint64_t state;
static uint32_t random32(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}
static int below(int n) { return (int)(random32() % (uint32_t)n); }

// Not-a-numbers differ in their bits.
static uint32_t bits(float f) { return f == f ? ek_bits(f) : 0x7fc00000; }

int main(int count, char **arguments) {
    static const int TYPES[] = {EK_F32, EK_F16, EK_BF16, EK_Q4_0, EK_Q4_1, EK_Q5_0, EK_Q5_1, EK_Q8_0, EK_Q2_K, EK_Q3_K, EK_Q4_K,
        EK_Q5_K, EK_Q6_K, EK_IQ4_NL, EK_IQ4_XS, EK_MXFP4, EK_U4_32, EK_U4_64, EK_U4_128, EK_I8_64};
    const int rounds = count > 1 ? atoi(arguments[1]) : 1;
    state = count > 2 ? strtoull(arguments[2], NULL, 10) : 1;
    uint64_t hash = 1469598103934665603u;
    for (int i = 0; i < rounds * (int)(sizeof TYPES / sizeof *TYPES); i++) {
        const int type = TYPES[i % (int)(sizeof TYPES / sizeof *TYPES)], block = ek_format_of(type)->block;
        const int rows = 1 + below(40), n = 1 + below(20);
        const int columns = ek_format_of(type)->filled ? 1 + below(4 * block) : block * (1 + below(3));
        const size_t size = ek_stored_bytes(type, rows, columns);
        uint8_t *stored = malloc(size), *packed = malloc(ek_packed_bytes(type, rows, columns));
        float *x = malloc((size_t)n * (size_t)columns * 4), *row = malloc((size_t)columns * 4);
        float *first = malloc((size_t)n * (size_t)rows * 4), *y = malloc((size_t)n * (size_t)rows * 4);
        if (!stored || !packed || !x || !row || !first || !y) return 2;
        for (size_t b = 0; b < size; b++) stored[b] = (uint8_t)random32();
        for (int k = 0; k < n * columns; k++) x[k] = ((float)random32() - 2147483648.f) * 0x1p-28f;
        if (i % 7 == 0) x[below(n * columns)] = ek_float(random32());
        ek_pack(type, rows, columns, stored, packed);
        const char *isa;
        for (int k = 0; (isa = ek_isa_at(k)); k++) {
            if (!ek_set_isa(isa) || ek_multiply(type, rows, columns, packed, n, x, k ? y : first)) return 2;
            for (int j = 0; k && j < n * rows; j++)
                if (bits(y[j]) != bits(first[j])) return printf("type %d differs on %s\n", type, isa), 1;
            const int last = n - 1;
            if (ek_multiply(type, rows, columns, packed, 1, x + (size_t)last * (size_t)columns, y)) return 2;
            for (int j = 0; j < rows; j++)
                if (bits(y[j]) != bits(first[last * rows + j])) return printf("type %d depends on n on %s\n", type, isa), 1;
        }
        const int id = below(rows);
        if (ek_rows(type, rows, columns, packed, 1, &id, row)) return 2;
        for (int j = 0; j < n * rows; j++) hash = (hash ^ bits(first[j])) * 1099511628211u;
        for (int j = 0; j < columns; j++) hash = (hash ^ bits(row[j])) * 1099511628211u;
        free(stored); free(packed); free(x); free(row); free(first); free(y);
    }
    printf("%016llx\n", (unsigned long long)hash);
    return 0;
}
