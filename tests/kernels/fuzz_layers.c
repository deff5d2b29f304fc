// Norms, gated units and attention: the functions that the operators call, with memory that is exactly as large as they
// may touch. Attention's scratch memory and the cache's unused rows are filled with numbers that are none.
#include "fuzz.h"
#include <stdlib.h>

static void make_special(float *x, size_t count) { x[fuzz_below((int)count)] = ek_float(fuzz_random()); }

int fuzz_rows(int round, uint64_t *hash) {
    const int columns = 1 + fuzz_below(100), added = fuzz_below(2), gelu = fuzz_below(2);
    const size_t count = (size_t)columns, bytes = count * sizeof(float);
    float *x = fuzz_floats(2 * count, fuzz_below(4) ? 4 : 1e20f), *delta = fuzz_floats(count, 4), *gain = fuzz_floats(count, 2);
    float *out = fuzz_memory(bytes), *sum = fuzz_memory(bytes), *first = fuzz_memory(3 * bytes);
    if (round % 5 == 0) make_special(x, 2 * count);
    int wrong = 0;
    const char *name;
    for (int k = 0; !wrong && (name = ek_isa_at(k)); k++) {
        if (!ek_set_isa(name)) return 2;
        const ek_isa *isa = ek_active();
        isa->norm(x, added ? delta : NULL, gain, 1e-5f, columns, out, added ? sum : NULL);
        if (!added) {  // in place, as the norms of heads are
            memcpy(sum, x, bytes);
            isa->norm(sum, NULL, gain, 1e-5f, columns, sum, NULL);
            wrong = fuzz_differs(sum, out, count, "a norm in place", name);
        }
        if (!k) memcpy(first, out, bytes), memcpy(first + count, sum, bytes);
        wrong |= fuzz_differs(out, first, count, "a norm", name) | fuzz_differs(sum, first + count, count, "a sum", name);
        isa->gate(gelu, x, x + count, columns, out);
        if (!k) memcpy(first + 2 * count, out, bytes);
        wrong |= fuzz_differs(out, first + 2 * count, count, "a gated unit", name);
    }
    *hash = fuzz_hash(*hash, first, 3 * count);
    free(x); free(delta); free(gain); free(out); free(sum); free(first);
    return wrong;
}

static size_t row_width(const ek_attention *a) { return (size_t)(a->heads + 2 * a->kv_heads) * (size_t)a->dim; }
static size_t out_width(const ek_attention *a) { return (size_t)a->heads * (size_t)a->dim; }
static size_t key_count(const ek_attention *a) { return (size_t)a->kv_heads * (size_t)a->dim * (size_t)a->capacity; }
static size_t value_count(const ek_attention *a) {
    return (size_t)a->kv_heads * (size_t)((a->dim + 15) / 16) * (size_t)a->capacity * 16;
}

// Where dimension d of a row lies in the cache of keys and in that of values.
static size_t key_at(const ek_attention *a, int h, int row, int d) {
    return ((size_t)h * (size_t)a->capacity + (size_t)(row / 16 * 16)) * (size_t)a->dim + (size_t)(16 * d + row % 16);
}
static size_t value_at(const ek_attention *a, int h, int row, int d) {
    return ((size_t)(h * ((a->dim + 15) / 16) + d / 16) * (size_t)a->capacity + (size_t)row) * 16 + (size_t)(d % 16);
}

static uint16_t random_half(void) { return ek_to_half((float)(fuzz_below(2001) - 1000) * 1e-3f); }

// A cache that has the first `length` rows of another one, or random ones.
static void make_cache(ek_attention *a, const ek_attention *from) {
    a->keys = fuzz_memory(2 * key_count(a));
    a->values = fuzz_memory(2 * value_count(a));
    memset(a->keys, 0x7f, 2 * key_count(a));
    memset(a->values, 0x7f, 2 * value_count(a));
    for (int h = 0; h < a->kv_heads; h++)
        for (int row = 0; row < a->length; row++)
            for (int d = 0; d < a->dim; d++) {
                a->keys[key_at(a, h, row, d)] = from ? from->keys[key_at(from, h, row, d)] : random_half();
                a->values[value_at(a, h, row, d)] = from ? from->values[value_at(from, h, row, d)] : random_half();
            }
}

// One pass on this thread in tiles of `tile` queries. Its positions, queries and output are made.
static void run_pass(ek_attention *a, const ek_isa *isa, int tile) {
    const int group = a->heads / a->kv_heads;
    int32_t *positions = fuzz_memory((size_t)a->n * sizeof *positions);
    a->tree = 0;
    for (int i = 0; i < a->n; i++) {
        positions[i] = a->parents[i] < 0 ? a->length : positions[a->parents[i]] + 1;
        a->tree |= a->parents[i] != i - 1;
    }
    a->positions = positions;
    a->queries = fuzz_memory((size_t)a->n * out_width(a) * sizeof(float));
    a->out = fuzz_memory((size_t)a->n * out_width(a) * sizeof(float));
    for (int i = 0; i < a->n; i++) isa->prepare(a, i);
    const size_t bytes = sizeof(float) * 8 * (size_t)(a->dim + a->capacity) + sizeof(int32_t) * (size_t)a->n;
    const int unit = a->tree ? group : a->n * group;  // a tile lies within it
    for (int h = 0; h < a->kv_heads; h++)
        for (int start = 0; start < a->n * group; start += unit)
            for (int q = start; q < start + unit; q += tile) {
                float *scratch = fuzz_memory(bytes);
                memset(scratch, 0xff, bytes);
                isa->attend(a, h, q, q + tile < start + unit ? q + tile : start + unit, scratch);
                free(scratch);
            }
    free(positions); free(a->queries);
}

// Row i once more, in a pass over a chain of its ancestors and itself.
static int row_alone(const ek_attention *whole, int i, const ek_isa *isa, int tile) {
    ek_attention a = *whole;
    int depth = 0;
    for (int r = i; r >= 0; r = whole->parents[r]) depth++;
    a.n = depth;
    a.capacity = (a.length + depth + 15) / 16 * 16;
    float *qkv = fuzz_memory((size_t)depth * row_width(&a) * sizeof *qkv);
    int32_t *parents = fuzz_memory((size_t)depth * sizeof *parents);
    for (int r = i, k = depth - 1; k >= 0; r = whole->parents[r], k--) {
        memcpy(qkv + (size_t)k * row_width(&a), whole->qkv + (size_t)r * row_width(&a), row_width(&a) * sizeof *qkv);
        parents[k] = k - 1;
    }
    a.qkv = qkv;
    a.parents = parents;
    make_cache(&a, whole);
    run_pass(&a, isa, tile);
    const size_t width = out_width(&a);
    const float *last = a.out + (size_t)(depth - 1) * width, *expected = whole->out + (size_t)i * width;
    const int wrong = fuzz_differs(last, expected, width, "attention of a row alone", isa->name);
    free(qkv); free(parents); free(a.keys); free(a.values); free(a.out);
    return wrong;
}

int fuzz_attention(int round, uint64_t *hash) {
    ek_attention a = {.scale = 0.3f, .epsilon = 1e-6f};
    a.kv_heads = 1 + fuzz_below(3);
    a.dim = 1 + fuzz_below(fuzz_below(4) ? 40 : 140);
    a.interleaved = fuzz_below(2);
    a.window = fuzz_below(2) ? 1 + fuzz_below(40) : 0;
    a.n = 1 + fuzz_below(24);
    a.length = fuzz_below(50);
    a.heads = a.kv_heads * (1 + fuzz_below(10));
    a.rope_dims = 2 * fuzz_below(a.dim / 2 + 1);
    a.rotated = a.rope_dims > 0;
    a.capacity = (a.length + a.n + fuzz_below(20) + 15) / 16 * 16;
    const size_t turns = (size_t)(a.length + a.n) * (size_t)(a.rope_dims / 2);
    const size_t values = (size_t)a.n * row_width(&a), outputs = (size_t)a.n * out_width(&a);
    float *qkv = fuzz_floats(values, fuzz_below(5) ? 2 : 1e5f), *cosines = fuzz_floats(turns, 1), *sines = fuzz_floats(turns, 1);
    float *bias = fuzz_floats(row_width(&a), 1), *gain = fuzz_floats((size_t)a.dim, 2), *first = fuzz_memory(outputs * sizeof *first);
    int32_t *parents = fuzz_memory((size_t)a.n * sizeof *parents);
    const int tree = fuzz_below(2), skipped = fuzz_below(4), wanted = 1 + fuzz_below(8);
    for (int i = 0; i < a.n; i++) parents[i] = tree ? fuzz_below(i + 1) - 1 : i - 1;
    if (round % 3 == 0) make_special(qkv, values);
    a.qkv = qkv; a.parents = parents;
    if (a.rotated) a.cosines = cosines, a.sines = sines;
    if (fuzz_below(2)) a.bias = bias;
    if (fuzz_below(2)) a.q_gain = a.k_gain = gain;
    ek_attention cached = a;
    make_cache(&cached, NULL);
    int wrong = 0;
    const char *name;
    for (int k = 0; !wrong && (name = ek_isa_at(k)); k++) {
        if (!ek_set_isa(name)) return 2;
        const ek_isa *isa = ek_active();
        make_cache(&a, &cached);
        run_pass(&a, isa, isa->tile);
        if (!k) memcpy(first, a.out, outputs * sizeof *first);
        wrong = fuzz_differs(a.out, first, outputs, "attention", name);
        const int tile = wanted < isa->tile ? wanted : isa->tile;
        for (int i = skipped; i < a.n && !wrong; i += 4) wrong = row_alone(&a, i, isa, tile);
        free(a.keys); free(a.values); free(a.out);
    }
    *hash = fuzz_hash(*hash, first, outputs);
    free(qkv); free(bias); free(gain); free(cosines); free(sines); free(first);
    free(parents); free(cached.keys); free(cached.values);
    return wrong;
}
