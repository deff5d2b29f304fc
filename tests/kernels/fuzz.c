// Random bytes in random shapes through every format, layer operation and instruction set: fuzz ROUNDS [SEED].
// Exits with 1 where a row's bits depend on the rest of the pass or on the instruction set; prints a hash of all outputs.
#include "fuzz.h"
#include <stdio.h>
#include <stdlib.h>

int ek_multiply(int type, int rows, int columns, const uint8_t *packed, int n, const float *x, float *y);
int ek_rows(int type, int rows, int columns, const uint8_t *packed, int count, const int *ids, float *y);
void ek_pack(int type, int rows, int columns, const uint8_t *stored, uint8_t *packed);

static const int TYPES[] = {EK_F32, EK_F16, EK_BF16, EK_Q4_0, EK_Q4_1, EK_Q5_0, EK_Q5_1, EK_Q8_0, EK_Q2_K, EK_Q3_K, EK_Q4_K,
    EK_Q5_K, EK_Q6_K, EK_IQ4_NL, EK_IQ4_XS, EK_MXFP4, EK_U4_32, EK_U4_64, EK_U4_128, EK_I8_64};
enum { TYPE_COUNT = sizeof TYPES / sizeof *TYPES };

static uint64_t state;
void fuzz_set_seed(uint64_t seed) { state = seed; }
uint32_t fuzz_random(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}
int fuzz_below(int n) { return (int)(fuzz_random() % (uint32_t)n); }

void *fuzz_memory(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) exit(2);
    return memory;
}

float *fuzz_floats(size_t count, float size) {
    float *x = fuzz_memory(count * sizeof *x);
    for (size_t i = 0; i < count; i++) x[i] = ((float)fuzz_random() - 2147483648.f) * 0x1p-31f * size;
    return x;
}

uint32_t fuzz_bits(float f) { return f == f ? ek_bits(f) : 0x7fc00000; }

uint64_t fuzz_hash(uint64_t hash, const float *values, size_t count) {
    for (size_t i = 0; i < count; i++) hash = (hash ^ fuzz_bits(values[i])) * 1099511628211u;
    return hash;
}

int fuzz_differs(const float *values, const float *expected, size_t count, const char *what, const char *isa) {
    for (size_t i = 0; i < count; i++)
        if (fuzz_bits(values[i]) != fuzz_bits(expected[i])) return printf("%s differs on %s\n", what, isa), 1;
    return 0;
}

int fuzz_product(int round, uint64_t *hash) {
    const int type = TYPES[round % TYPE_COUNT], block = ek_format_of(type)->block;
    const int rows = 1 + fuzz_below(40), n = 1 + fuzz_below(20), id = fuzz_below(rows);
    const int columns = ek_format_of(type)->filled ? 1 + fuzz_below(4 * block) : block * (1 + fuzz_below(3));
    const size_t size = ek_stored_bytes(type, rows, columns), outputs = (size_t)n * (size_t)rows;
    uint8_t *stored = fuzz_memory(size), *packed = fuzz_memory(ek_packed_bytes(type, rows, columns));
    float *x = fuzz_floats((size_t)n * (size_t)columns, 8), *row = fuzz_memory((size_t)columns * sizeof *row);
    float *first = fuzz_memory(outputs * sizeof *first), *y = fuzz_memory(outputs * sizeof *y);
    for (size_t b = 0; b < size; b++) stored[b] = (uint8_t)fuzz_random();
    if (round % 7 == 0) x[fuzz_below(n * columns)] = ek_float(fuzz_random());
    ek_pack(type, rows, columns, stored, packed);
    int wrong = 0;
    const char *isa;
    for (int k = 0; !wrong && (isa = ek_isa_at(k)); k++) {
        if (!ek_set_isa(isa) || ek_multiply(type, rows, columns, packed, n, x, k ? y : first)) return 2;
        if (k) wrong = fuzz_differs(y, first, outputs, "a product", isa);
        const int last = n - 1;
        if (ek_multiply(type, rows, columns, packed, 1, x + (size_t)last * (size_t)columns, y)) return 2;
        wrong |= fuzz_differs(y, first + (size_t)last * (size_t)rows, (size_t)rows, "a product with one row", isa);
    }
    if (ek_rows(type, rows, columns, packed, 1, &id, row)) return 2;
    *hash = fuzz_hash(fuzz_hash(*hash, first, outputs), row, (size_t)columns);
    free(stored); free(packed); free(x); free(row); free(first); free(y);
    return wrong;
}

int main(int count, char **arguments) {
    const int rounds = count > 1 ? atoi(arguments[1]) : 1;
    fuzz_set_seed(count > 2 ? strtoull(arguments[2], NULL, 10) : 1);
    uint64_t hash = 1469598103934665603u;
    int wrong = 0;
    for (int i = 0; i < rounds * TYPE_COUNT && !wrong; i++) {
        wrong = fuzz_product(i, &hash);
        if (!wrong) wrong = fuzz_rows(i, &hash);
        if (!wrong) wrong = fuzz_attention(i, &hash);
    }
    printf("%016llx\n", (unsigned long long)hash);
    return wrong;
}
