// The rest of a decoder layer. Tensors are float unless it says otherwise; n rows, one sequence.
//   RmsNorm(X [..., columns], gain [columns]) → Y. Attribute: epsilon.
//   AddRmsNorm(X, D [..., columns], gain) → (Y, X + D): the norm of the sum.
//   GatedUnit(X [..., 2 · w]) → Y [..., w]: SwiGLU of gate and up beside each other, GeGLU with gelu = 1.
//   Attention(QKV [1, n, (heads + 2 · kv_heads) · head_dim], keys, values float16, parents int32 [n], length int32 [1],
//     cosines, sines [positions, rope_dims / 2], then bias (if biased), then the gains of the heads' norms (if normed))
//     → Y [1, n, heads · head_dim]: rotary embedding, and attention over the cache, to which the rows are added behind
//     its first `length`. It writes into two of its inputs, the cache of all layers (LAYOUT.md): keys
//     [layers, kv_heads, capacity / 16, head_dim, 16], values [layers, kv_heads, ⌈head_dim / 16⌉, capacity, 16].
//     parents: the row before each row of the pass, −1: the cache's last. Attributes: layer, heads, kv_heads, head_dim,
//     rope_dims (0: not rotated), interleaved, window (0: none), biased, normed, scale, epsilon.
#include "operator.h"
#include "export.h"
#include <stdatomic.h>
#include <stdlib.h>

enum { MAX_THREADS = 1024, SMALL = 1 << 14 };  // values for which a second thread does not pay

static _Atomic int threads = 4;
// How many threads ONNX Runtime has: attention is cut into pieces for them.
EK_API void ek_set_threads(int count) { atomic_store(&threads, count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count); }

typedef struct {
    const ek_isa *isa;
    const float *x, *delta, *gain;  // delta: NULL for RmsNorm
    float *out, *sum, epsilon;
    int columns, gelu;
} row_job;

static void norm_row(void *data, size_t i) {
    const row_job *j = data;
    const size_t at = i * (size_t)j->columns;
    const float *delta = j->delta ? j->delta + at : NULL;
    j->isa->norm(j->x + at, delta, j->gain, j->epsilon, j->columns, j->out + at, delta ? j->sum + at : NULL);
}

static void gate_row(void *data, size_t i) {
    const row_job *j = data;
    const size_t at = i * (size_t)j->columns;
    j->isa->gate(j->gelu, j->x + 2 * at, j->x + 2 * at + j->columns, j->columns, j->out + at);
}

// Runs the task for each row of a tensor.
static OrtStatus *each_row(const OrtKernelContext *context, void (*task)(void *, size_t), const ek_tensor *x, row_job *job) {
    const size_t rows = ek_product(x->dimensions, x->count - 1);
    if (rows * (size_t)job->columns > SMALL) return ek_parallel(context, task, rows, job);
    for (size_t i = 0; i < rows; i++) task(job, i);
    return NULL;
}

static OrtStatus *norm_create(const OrtCustomOp *op, const OrtFunction *api, const OrtKernelInfo *info, void **out) {
    (void)op; (void)api;
    float *epsilon = malloc(sizeof *epsilon);
    if (!epsilon) return ek_out_of_memory();
    OrtStatus *status = ek_ort.KernelInfoGetAttribute_float(info, "epsilon", epsilon);
    if (status) free(epsilon);
    else *out = epsilon;
    return status;
}

static OrtStatus *normalize(void *data, OrtKernelContext *context) {
    row_job j = {.isa = ek_active(), .epsilon = *(const float *)data};
    ek_tensor x, delta = {0}, gain;
    size_t inputs = 0;
    TRY(ek_ort.KernelContext_GetInputCount(context, &inputs));
    TRY(ek_input(context, 0, sizeof(float), &x));
    const int64_t columns = x.count ? x.dimensions[x.count - 1] : 0;
    if (columns < 1 || columns > EK_MAX_COLUMNS) return ek_invalid("RmsNorm: X has no columns, or too many");
    if (inputs == 3) {
        TRY(ek_input(context, 1, sizeof(float), &delta));
        if (delta.count != x.count || memcmp(delta.dimensions, x.dimensions, x.count * sizeof *x.dimensions))
            return ek_invalid("AddRmsNorm: X and D have different shapes");
    }
    TRY(ek_input(context, inputs - 1, sizeof(float), &gain));
    if (gain.count != 1 || gain.dimensions[0] != columns) return ek_invalid("RmsNorm: one gain for each column");
    j.x = x.data; j.delta = delta.data; j.gain = gain.data;
    j.columns = (int)columns;
    TRY(ek_output(context, 0, x.dimensions, x.count, &j.out));
    if (inputs == 3) TRY(ek_output(context, 1, x.dimensions, x.count, &j.sum));
    return each_row(context, norm_row, &x, &j);
}

static OrtStatus *gate_create(const OrtCustomOp *op, const OrtFunction *api, const OrtKernelInfo *info, void **out) {
    (void)op; (void)api;
    int *gelu = malloc(sizeof *gelu);
    if (!gelu) return ek_out_of_memory();
    OrtStatus *status = ek_attribute(info, "gelu", 1, gelu);
    if (status) free(gelu);
    else *out = gelu;
    return status;
}

static OrtStatus *gate(void *data, OrtKernelContext *context) {
    row_job j = {.isa = ek_active(), .gelu = *(const int *)data};
    ek_tensor x;
    TRY(ek_input(context, 0, sizeof(float), &x));
    const int64_t columns = x.count ? x.dimensions[x.count - 1] : 0;
    if (columns < 2 || columns % 2 || columns > 2 * EK_MAX_COLUMNS) return ek_invalid("GatedUnit: gate and up beside each other");
    j.x = x.data;
    j.columns = (int)(columns / 2);
    x.dimensions[x.count - 1] = j.columns;
    TRY(ek_output(context, 0, x.dimensions, x.count, &j.out));
    return each_row(context, gate_row, &x, &j);
}

typedef struct { ek_attention a; int layer, biased, normed; } attention;

#define CACHE_SHAPE "Attention: a cache of another shape"

static OrtStatus *attention_create(const OrtCustomOp *op, const OrtFunction *api, const OrtKernelInfo *info, void **out) {
    (void)op; (void)api;
    attention *k = calloc(1, sizeof *k);
    if (!k) return ek_out_of_memory();
    ek_attention *a = &k->a;
    const struct { const char *name; int64_t most; int *out; } attributes[] = {
        {"layer", 1 << 16, &k->layer}, {"heads", 1 << 12, &a->heads}, {"kv_heads", 1 << 12, &a->kv_heads},
        {"head_dim", EK_MAX_HEAD, &a->dim}, {"rope_dims", EK_MAX_HEAD, &a->rope_dims}, {"interleaved", 1, &a->interleaved},
        {"window", EK_MAX_ROWS, &a->window}, {"biased", 1, &k->biased}, {"normed", 1, &k->normed}};
    OrtStatus *status = ek_ort.KernelInfoGetAttribute_float(info, "scale", &a->scale);
    if (!status) status = ek_ort.KernelInfoGetAttribute_float(info, "epsilon", &a->epsilon);
    for (size_t i = 0; i < sizeof attributes / sizeof *attributes && !status; i++)
        status = ek_attribute(info, attributes[i].name, attributes[i].most, attributes[i].out);
    a->rotated = a->rope_dims > 0;
    if (!status && (!a->kv_heads || a->heads % a->kv_heads || !a->heads || !a->dim || a->rope_dims > a->dim || a->rope_dims % 2))
        status = ek_invalid("Attention: heads or dimensions that do not go together");
    for (size_t i = 1; i < 3 && !status; i++) {  // they are written into, and a constant may be a file that is mapped
        const OrtValue *value = NULL;
        int constant = 0;
        status = ek_ort.KernelInfoGetConstantInput_tensor(info, i, &constant, &value);
        if (!status && constant) status = ek_invalid("Attention: the cache is a constant");
    }
    if (status) free(k);
    else *out = k;
    return status;
}

typedef struct {
    const ek_attention *a;
    const ek_isa *isa;
    int tile, per_head, per_row;  // queries of a tile, tiles of a key-value head, and of a row of a tree
    size_t scratch;
    _Atomic int failed;  // a tile found no memory
} attention_job;

static void prepare_row(void *data, size_t i) {
    const attention_job *j = data;
    j->isa->prepare(j->a, (int)i);
}

static void attend_tile(void *data, size_t i) {
    attention_job *j = data;
    const ek_attention *a = j->a;
    const int group = a->heads / a->kv_heads, h = (int)i / j->per_head, t = (int)i % j->per_head;
    int q0 = t * j->tile, last = a->n * group;
    if (a->tree) {  // a tile has one row
        q0 = t / j->per_row * group + t % j->per_row * j->tile;
        last = (t / j->per_row + 1) * group;
    }
    ek_buffer *scratch = ek_take(j->scratch);
    if (!scratch) { atomic_store(&j->failed, 1); return; }
    j->isa->attend(a, h, q0, q0 + j->tile < last ? q0 + j->tile : last, (float *)(void *)scratch->data);
    ek_put_back(scratch);
}

// This layer's part of the keys (input 1) or values (input 2).
static OrtStatus *cache(const OrtKernelContext *context, const attention *k, int values, uint16_t **out, int64_t *capacity) {
    ek_tensor t;
    TRY(ek_input(context, values ? 2 : 1, sizeof(uint16_t), &t));
    const int64_t *d = t.dimensions;
    if (t.count != 5 || d[0] <= k->layer || d[1] != k->a.kv_heads || d[4] != 16) return ek_invalid(CACHE_SHAPE);
    if (values ? d[2] != (k->a.dim + 15) / 16 : d[3] != k->a.dim) return ek_invalid(CACHE_SHAPE);
    *capacity = values ? d[3] : d[2] > EK_MAX_ROWS ? 0 : 16 * d[2];
    if (*capacity < 1 || *capacity > EK_MAX_ROWS) return ek_invalid(CACHE_SHAPE);
    *out = (uint16_t *)(uintptr_t)t.data + (size_t)k->layer * ek_product(d + 1, 4);
    return NULL;
}

static OrtStatus *vector(const OrtKernelContext *context, size_t i, int64_t length, const float **out) {
    ek_tensor t;
    TRY(ek_input(context, i, sizeof(float), &t));
    if (t.count != 1 || t.dimensions[0] != length) return ek_invalid("Attention: a bias or gain of another length");
    *out = t.data;
    return NULL;
}

// Cosines or sines; `positions` becomes at most as many as there are.
static OrtStatus *rotary_table(const OrtKernelContext *context, size_t i, const ek_attention *a, const float **out, int64_t *positions) {
    ek_tensor t;
    TRY(ek_input(context, i, sizeof(float), &t));
    if (!a->rotated) return NULL;
    if (t.count != 2 || t.dimensions[1] != a->rope_dims / 2) return ek_invalid("Attention: rotary tables of another shape");
    if (t.dimensions[0] < *positions) *positions = t.dimensions[0];
    *out = t.data;
    return NULL;
}

// The inputs besides the cache; `positions`: those that the rotary tables have.
static OrtStatus *attention_inputs(const OrtKernelContext *context, const attention *k, ek_attention *a, int64_t *positions) {
    const int64_t width = (int64_t)(a->heads + 2 * a->kv_heads) * a->dim;
    ek_tensor qkv, parents, length;
    size_t inputs = 0;
    TRY(ek_ort.KernelContext_GetInputCount(context, &inputs));
    if (inputs != (size_t)(7 + k->biased + 2 * k->normed)) return ek_invalid("Attention: too many or too few inputs");
    TRY(ek_input(context, 0, sizeof(float), &qkv));
    if (qkv.count != 3 || qkv.dimensions[0] != 1 || qkv.dimensions[2] != width) return ek_invalid("Attention: QKV has another shape");
    const int64_t n = qkv.dimensions[1];
    if (n > EK_MAX_ROWS || n * a->heads > INT32_MAX) return ek_invalid("Attention: too many rows");
    TRY(ek_input(context, 3, sizeof(int32_t), &parents));
    if (parents.count != 1 || parents.dimensions[0] != n) return ek_invalid("Attention: one parent for each row");
    TRY(ek_input(context, 4, sizeof(int32_t), &length));
    if (length.count != 1 || length.dimensions[0] != 1) return ek_invalid("Attention: one length");
    a->n = (int)n;
    a->qkv = qkv.data;
    a->parents = parents.data;
    a->length = *(const int32_t *)length.data;
    *positions = EK_MAX_ROWS;
    TRY(rotary_table(context, 5, a, &a->cosines, positions));
    TRY(rotary_table(context, 6, a, &a->sines, positions));
    if (k->biased) TRY(vector(context, 7, width, &a->bias));
    if (k->normed) {
        TRY(vector(context, (size_t)(7 + k->biased), a->dim, &a->q_gain));
        TRY(vector(context, (size_t)(8 + k->biased), a->dim, &a->k_gain));
    }
    return NULL;
}

// The rows' positions in the sequence; whether they are a tree. `most`: positions that there may be.
static OrtStatus *find_positions(ek_attention *a, int32_t *positions, int64_t most) {
    for (int i = 0; i < a->n; i++) {
        const int parent = a->parents[i];
        if (parent < -1 || parent >= i) return ek_invalid("Attention: parents that are no tree");
        positions[i] = parent < 0 ? a->length : positions[parent] + 1;
        if (positions[i] >= most) return ek_invalid("Attention: more positions than the rotary tables have");
        a->tree |= parent != i - 1;
    }
    a->positions = positions;
    return NULL;
}

// Keys, values and queries of all rows, then attention in tiles of up to `isa->tile` queries, at least two for a thread.
static OrtStatus *run(const OrtKernelContext *context, const ek_attention *a) {
    const int group = a->heads / a->kv_heads, queries = a->n * group, pieces = 2 * atomic_load(&threads);
    attention_job j = {.a = a, .isa = ek_active(), .tile = a->n * a->heads / pieces};
    j.tile = j.tile < 1 ? 1 : j.tile > j.isa->tile ? j.isa->tile : j.tile;
    if (a->tree && j.tile > group) j.tile = group;
    j.per_row = (group + j.tile - 1) / j.tile;
    j.per_head = a->tree ? a->n * j.per_row : (queries + j.tile - 1) / j.tile;
    j.scratch = sizeof(float) * 8 * ((size_t)a->dim + (size_t)a->capacity) + sizeof(int32_t) * (size_t)a->n;
    if (a->n < 4) for (int i = 0; i < a->n; i++) prepare_row(&j, (size_t)i);
    else TRY(ek_parallel(context, prepare_row, (size_t)a->n, &j));
    TRY(ek_parallel(context, attend_tile, (size_t)(a->kv_heads * j.per_head), &j));
    return atomic_load(&j.failed) ? ek_out_of_memory() : NULL;
}

static OrtStatus *attend(void *data, OrtKernelContext *context) {
    const attention *k = data;
    ek_attention a = k->a;
    int64_t positions = 0, capacity = 0, value_capacity = 0;
    TRY(attention_inputs(context, k, &a, &positions));
    TRY(cache(context, k, 0, &a.keys, &capacity));
    TRY(cache(context, k, 1, &a.values, &value_capacity));
    if (capacity != value_capacity) return ek_invalid(CACHE_SHAPE);
    if (a.length < 0 || a.length > capacity || a.n > capacity - a.length) return ek_invalid("Attention: more rows than the cache has");
    a.capacity = (int)capacity;
    const int64_t dimensions[3] = {1, a.n, (int64_t)a.heads * a.dim};
    TRY(ek_output(context, 0, dimensions, 3, &a.out));
    if (!a.n) return NULL;
    const size_t query_bytes = ek_product(dimensions, 3) * sizeof(float);
    ek_buffer *own = ek_take(query_bytes + (size_t)a.n * sizeof(int32_t));
    if (!own) return ek_out_of_memory();
    a.queries = (float *)(void *)own->data;
    OrtStatus *status = find_positions(&a, (int32_t *)(void *)(own->data + query_bytes), positions);
    if (!status) status = run(context, &a);
    ek_put_back(own);
    return status;
}

static const char *norm_name(const OrtCustomOp *op) { (void)op; return "RmsNorm"; }
static const char *add_norm_name(const OrtCustomOp *op) { (void)op; return "AddRmsNorm"; }
static const char *gate_name(const OrtCustomOp *op) { (void)op; return "GatedUnit"; }
static const char *attention_name(const OrtCustomOp *op) { (void)op; return "Attention"; }
static int float_input(const OrtCustomOp *op, size_t i) { (void)op; (void)i; return ORT_FLOAT; }
static int attention_input(const OrtCustomOp *op, size_t i) {
    (void)op;
    return i == 1 || i == 2 ? ORT_FLOAT16 : i == 3 || i == 4 ? ORT_INT32 : ORT_FLOAT;
}
static int attention_variadic(const OrtCustomOp *op, size_t i) { (void)op; return i == 5 ? ORT_VARIADIC : ORT_REQUIRED; }
static size_t three(const OrtCustomOp *op) { (void)op; return 3; }
static size_t six(const OrtCustomOp *op) { (void)op; return 6; }

const OrtCustomOp EK_NORM = EK_OPERATOR(norm_name, float_input, ek_count_2, ek_required, ek_count_1, norm_create, normalize);
const OrtCustomOp EK_ADD_NORM = EK_OPERATOR(add_norm_name, float_input, three, ek_required, ek_count_2, norm_create, normalize);
const OrtCustomOp EK_GATE = EK_OPERATOR(gate_name, float_input, ek_count_1, ek_required, ek_count_1, gate_create, gate);
const OrtCustomOp EK_ATTENTION = EK_OPERATOR(attention_name, attention_input, six, attention_variadic, ek_count_1, attention_create, attend);
