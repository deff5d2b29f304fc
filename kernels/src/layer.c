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

static _Atomic int threads = 4;
// How many threads ONNX Runtime has: attention is cut into pieces for them.
EK_API void ek_set_threads(int count) { atomic_store(&threads, count > 0 ? count : 1); }

typedef struct { const ek_isa *isa; const float *x, *delta, *gain; float *out, *sum; float epsilon; int columns, gelu; } row_job;

static void norm_row(void *data, size_t i) {
    const row_job *j = data;
    const size_t at = i * (size_t)j->columns;
    j->isa->norm(j->x + at, j->delta ? j->delta + at : NULL, j->gain, j->epsilon, j->columns, j->out + at, j->sum ? j->sum + at : NULL);
}

static void gate_row(void *data, size_t i) {
    const row_job *j = data;
    const size_t at = i * (size_t)j->columns;
    j->isa->gate(j->gelu, j->x + 2 * at, j->x + 2 * at + j->columns, j->columns, j->out + at);
}

enum { SMALL = 1 << 14 };  // values for which a second thread does not pay

static OrtStatus *each_row(const OrtKernelContext *context, void (*task)(void *, size_t), const int64_t *dimensions, size_t count, row_job *job) {
    size_t rows = 1;
    for (size_t i = 0; i + 1 < count; i++) rows *= (size_t)dimensions[i];
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
    int64_t dimensions[MAX_DIMENSIONS], others[MAX_DIMENSIONS];
    size_t count = 0, other_count = 0, inputs = 0;
    const void *x = NULL, *delta = NULL, *gain = NULL;
    TRY(ek_ort.KernelContext_GetInputCount(context, &inputs));
    TRY(ek_input(context, 0, &x, dimensions, &count));
    if (!count || dimensions[count - 1] < 1 || dimensions[count - 1] > EK_MAX_COLUMNS) return ek_invalid("RmsNorm: X has no columns");
    if (inputs == 3) {
        TRY(ek_input(context, 1, &delta, others, &other_count));
        if (other_count != count || memcmp(others, dimensions, count * sizeof *others)) return ek_invalid("AddRmsNorm: X and D have different shapes");
    }
    TRY(ek_input(context, inputs - 1, &gain, others, &other_count));
    if (other_count != 1 || others[0] != dimensions[count - 1]) return ek_invalid("RmsNorm: one gain for each column");
    j.x = x; j.delta = delta; j.gain = gain;
    j.columns = (int)dimensions[count - 1];
    TRY(ek_output(context, 0, dimensions, count, &j.out));
    if (delta) TRY(ek_output(context, 1, dimensions, count, &j.sum));
    return each_row(context, norm_row, dimensions, count, &j);
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
    int64_t dimensions[MAX_DIMENSIONS];
    size_t count = 0;
    const void *x = NULL;
    TRY(ek_input(context, 0, &x, dimensions, &count));
    if (!count || dimensions[count - 1] < 2 || dimensions[count - 1] % 2) return ek_invalid("GatedUnit: gate and up beside each other");
    j.x = x;
    j.columns = (int)(dimensions[count - 1] /= 2);
    TRY(ek_output(context, 0, dimensions, count, &j.out));
    return each_row(context, gate_row, dimensions, count, &j);
}

typedef struct { ek_attention a; int layer, biased, normed; } attention;

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
    if (status) free(k);
    else *out = k;
    return status;
}

typedef struct { const ek_attention *a; const ek_isa *isa; int tile, per_head, per_row; size_t scratch; _Atomic int failed; } attention_job;

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

static OrtStatus *cache(const OrtKernelContext *context, const attention *k, int values, uint16_t **out, int *capacity) {
    int64_t d[MAX_DIMENSIONS];
    size_t count = 0;
    const void *data = NULL;
    TRY(ek_input(context, values ? 2 : 1, &data, d, &count));
    const int dims = values ? (k->a.dim + 15) / 16 : k->a.dim, rows = values ? 3 : 2;
    if (count != 5 || d[0] <= k->layer || d[1] != k->a.kv_heads || d[values ? 2 : 3] != dims || d[4] != 16 || d[rows] < 1 || d[rows] > EK_MAX_ROWS / 16 * (values ? 16 : 1))
        return ek_invalid("Attention: a cache of another shape");
    *capacity = (int)d[rows] * (values ? 1 : 16);
    *out = (uint16_t *)(uintptr_t)data + (size_t)k->layer * (size_t)(d[1] * d[2] * d[3] * 16);
    return NULL;
}

static OrtStatus *vector(const OrtKernelContext *context, size_t i, int64_t length, const float **out) {
    int64_t d[MAX_DIMENSIONS];
    size_t count = 0;
    const void *data = NULL;
    TRY(ek_input(context, i, &data, d, &count));
    if (count != 1 || d[0] != length) return ek_invalid("Attention: a bias or gain of another length");
    *out = data;
    return NULL;
}

// The inputs besides the cache; `table`: positions that the rotary tables have.
static OrtStatus *attention_inputs(OrtKernelContext *context, const attention *k, ek_attention *a, int64_t *table) {
    int64_t d[MAX_DIMENSIONS];
    size_t count = 0, inputs = 0;
    const void *data = NULL;
    TRY(ek_ort.KernelContext_GetInputCount(context, &inputs));
    if (inputs != (size_t)(7 + k->biased + 2 * k->normed)) return ek_invalid("Attention: too many or too few inputs");
    TRY(ek_input(context, 0, &data, d, &count));
    if (count != 3 || d[0] != 1 || d[1] > EK_MAX_ROWS || d[2] != (int64_t)(a->heads + 2 * a->kv_heads) * a->dim) return ek_invalid("Attention: QKV has another shape");
    a->qkv = data;
    a->n = (int)d[1];
    TRY(ek_input(context, 3, &data, d, &count));
    if (count != 1 || d[0] != a->n) return ek_invalid("Attention: one parent for each row");
    a->parents = data;
    TRY(ek_input(context, 4, &data, d, &count));
    if (count != 1 || d[0] != 1) return ek_invalid("Attention: one length");
    a->length = *(const int32_t *)data;
    for (size_t i = 5; i < 7; i++) {
        TRY(ek_input(context, i, &data, d, &count));
        if (a->rotated && (count != 2 || d[1] != a->rope_dims / 2)) return ek_invalid("Attention: rotary tables of another shape");
        *(i == 5 ? &a->cosines : &a->sines) = data;
        if (i == 5 || d[0] < *table) *table = a->rotated ? d[0] : EK_MAX_ROWS;
    }
    if (k->biased) TRY(vector(context, 7, (int64_t)(a->heads + 2 * a->kv_heads) * a->dim, &a->bias));
    if (k->normed) {
        TRY(vector(context, (size_t)(7 + k->biased), a->dim, &a->q_gain));
        TRY(vector(context, (size_t)(8 + k->biased), a->dim, &a->k_gain));
    }
    return NULL;
}

static OrtStatus *attend(void *data, OrtKernelContext *context) {
    const attention *k = data;
    ek_attention a = k->a;
    int64_t table = 0;
    int capacity = 0;
    TRY(attention_inputs(context, k, &a, &table));
    TRY(cache(context, k, 0, &a.keys, &a.capacity));
    TRY(cache(context, k, 1, &a.values, &capacity));
    if (capacity != a.capacity || a.length < 0 || a.length > capacity || a.n > capacity - a.length) return ek_invalid("Attention: more rows than the cache has");
    const int64_t dimensions[3] = {1, a.n, (int64_t)a.heads * a.dim};
    TRY(ek_output(context, 0, dimensions, 3, &a.out));
    if (!a.n) return NULL;
    const size_t query_bytes = (size_t)a.n * (size_t)a.heads * (size_t)a.dim * sizeof(float);
    ek_buffer *own = ek_take(query_bytes + (size_t)a.n * sizeof(int32_t));
    if (!own) return ek_out_of_memory();
    a.queries = (float *)(void *)own->data;
    int32_t *positions = (int32_t *)(void *)(own->data + query_bytes);
    a.positions = positions;
    OrtStatus *status = NULL;
    for (int i = 0; i < a.n && !status; i++) {
        const int parent = a.parents[i];
        if (parent < -1 || parent >= i) status = ek_invalid("Attention: parents that are no tree");
        else if ((positions[i] = parent < 0 ? a.length : positions[parent] + 1) >= table) status = ek_invalid("Attention: more positions than the rotary tables have");
        a.tree |= parent != i - 1;
    }
    const int group = a.heads / a.kv_heads, queries = a.n * group, least = 2 * atomic_load(&threads);
    attention_job j = {.a = &a, .isa = ek_active()};
    j.tile = queries * a.kv_heads / least;
    if (j.tile < 1) j.tile = 1;
    if (j.tile > j.isa->tile) j.tile = j.isa->tile;
    if (a.tree && j.tile > group) j.tile = group;
    j.per_row = (group + j.tile - 1) / j.tile;
    j.per_head = a.tree ? a.n * j.per_row : (queries + j.tile - 1) / j.tile;
    j.scratch = sizeof(float) * 8 * ((size_t)a.dim + (size_t)capacity) + sizeof(int32_t) * (size_t)a.n;
    if (!status && a.n < 4) for (int i = 0; i < a.n; i++) prepare_row(&j, (size_t)i);
    else if (!status) status = ek_parallel(context, prepare_row, (size_t)a.n, &j);
    if (!status) status = ek_parallel(context, attend_tile, (size_t)(a.kv_heads * j.per_head), &j);
    ek_put_back(own);
    if (!status && atomic_load(&j.failed)) status = ek_out_of_memory();
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
