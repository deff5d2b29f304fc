// What the parts of the fuzz program share.
#ifndef FUZZ_H
#define FUZZ_H
#include "ek.h"

uint32_t fuzz_random(void);
int fuzz_below(int n);
void *fuzz_memory(size_t bytes);  // exactly as large, so that a sanitizer sees what lies outside
float *fuzz_floats(size_t count, float size);
void fuzz_set_seed(uint64_t seed);
// The same for all numbers that are none: their bits differ.
uint32_t fuzz_bits(float f);
uint64_t fuzz_hash(uint64_t hash, const float *values, size_t count);
// 1, and a line on what differs, where the values differ in their bits.
int fuzz_differs(const float *values, const float *expected, size_t count, const char *what, const char *isa);

// Each runs one random case on every instruction set; 0: the bits agree.
int fuzz_product(int round, uint64_t *hash);
int fuzz_rows(int round, uint64_t *hash);
int fuzz_attention(int round, uint64_t *hash);
#endif
