// Operators of ONNX Runtime, domain "edgespec":
//   GgufMatMul(X float [..., columns], W0 uint8 [bytes], W1, …) → Y float [..., Σ rows]: X · Wᵀ, the products of the
//     matrices beside each other; X is rounded once. Attributes: columns, parts, and for each matrix type0, rows0, ….
//   GgufGatherRows(I int64 [...], W uint8 [bytes]) → Y float [..., columns]: rows of a matrix. Attributes: columns, type0, rows0.
// Types are GGUF's numbers (ek.h); W is packed (LAYOUT.md) and only read.
#include "ek.h"
#include "export.h"
#include "ort.h"
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_PARTS = 8, MAX_DIMENSIONS = 8, STRIP = 256, CHUNKS = 64, CHUNK_BYTES = 1 << 15, SLOTS = 64 };

#define FIELD(index, name, result, parameters) result(*name) parameters;
static struct { ORT_FUNCTIONS(FIELD) } ort;
#define TRY(call) do { OrtStatus *status_ = (call); if (status_) return status_; } while (0)

static OrtStatus *invalid(const char *message) { return ort.CreateStatus(ORT_INVALID_ARGUMENT, message); }

// Scratch memory for rounded activations. A run takes a buffer and puts it back; buffers are as large as the largest
// strip of any node, so that a pass allocates nothing: only runs at the same time, at their first pass, do.
typedef struct { size_t size; uint8_t *data; void *whole; } buffer;
static _Atomic(buffer *) slots[SLOTS];
static _Atomic size_t largest;

static void drop(buffer *b) { if (b) { free(b->whole); free(b); } }

static buffer *make(size_t size) {
    buffer *b = malloc(sizeof *b);
    if (!b) return NULL;
    b->whole = malloc(size + 64);
    if (!b->whole) { free(b); return NULL; }
    b->size = size;
    b->data = (uint8_t *)(((uintptr_t)b->whole + 63) / 64 * 64);
    return b;
}

static buffer *take(size_t size) {
    for (int i = 0; i < SLOTS; i++) {
        buffer *b = atomic_exchange(&slots[i], NULL);
        if (b && b->size >= size) return b;
        drop(b);
    }
    const size_t most = atomic_load(&largest);
    return make(size > most ? size : most);
}

static void put_back(buffer *b) {
    for (int i = 0; i < SLOTS; i++) {
        buffer *empty = NULL;
        if (atomic_compare_exchange_strong(&slots[i], &empty, b)) return;
    }
    drop(b);
}

typedef struct {
    int columns, parts, rows, chunk;  // rows and groups of all parts; groups of a chunk
    int64_t groups;
    ek_matrix matrix[MAX_PARTS];
    size_t bytes[MAX_PARTS];
    int blocks[EK_ACTS];  // activation blocks of a row, 0 where no part takes this kind
    size_t row_bytes[EK_ACTS];
} kernel;

static OrtStatus *attribute(const OrtKernelInfo *info, const char *name, int part, int64_t most, int *out) {
    char full[32];
    int64_t value = 0;
    if (part < 0) snprintf(full, sizeof full, "%s", name);
    else snprintf(full, sizeof full, "%s%d", name, part);
    TRY(ort.KernelInfoGetAttribute_int64(info, full, &value));
    if (value < 0 || value > most) return invalid("an attribute of an edgespec operator is out of range");
    *out = (int)value;
    return NULL;
}

static OrtStatus *read_attributes(kernel *k, const OrtKernelInfo *info, int parts) {
    TRY(attribute(info, "columns", -1, EK_MAX_COLUMNS, &k->columns));
    k->parts = parts;
    if (!parts) TRY(attribute(info, "parts", -1, MAX_PARTS, &k->parts));
    if (!k->parts || !k->columns) return invalid("an edgespec operator needs columns and parts");
    size_t total = 0;
    for (int i = 0; i < k->parts; i++) {
        int type = 0, rows = 0;
        TRY(attribute(info, "type", i, 1 << 20, &type));
        TRY(attribute(info, "rows", i, EK_MAX_ROWS, &rows));
        k->bytes[i] = ek_packed_bytes(type, rows, k->columns);
        if (!k->bytes[i]) return invalid("edgespec: a matrix's type is unknown, or its columns are no whole number of blocks");
        const ek_format *f = ek_format_of(type);
        k->matrix[i] = (ek_matrix){f, rows, k->columns, NULL, 0};
        k->rows += rows;
        k->groups += (rows + EK_ROWS - 1) / EK_ROWS;
        total += k->bytes[i];
        const int blocks = ek_act_blocks(f, k->columns);
        if (blocks > k->blocks[f->act]) k->blocks[f->act] = blocks;
        k->row_bytes[f->act] = 4 * (size_t)k->blocks[f->act] * (size_t)ek_act_words(f->act);
    }
    const size_t group = total / (size_t)k->groups + 1;
    const int64_t least = (int64_t)((CHUNK_BYTES + group - 1) / group), share = (k->groups + CHUNKS - 1) / CHUNKS;
    k->chunk = (int)(least > share ? least : share);
    return NULL;
}

static size_t scratch_bytes(const kernel *k, size_t n) {
    size_t bytes = 0;
    for (int a = 0; a < EK_ACTS; a++) bytes += (n * k->row_bytes[a] + 63) / 64 * 64;
    return bytes;
}

static OrtStatus *create(const OrtKernelInfo *info, int parts, void **out) {
    kernel *k = calloc(1, sizeof *k);
    if (!k) return ort.CreateStatus(ORT_FAIL, "out of memory");
    OrtStatus *status = read_attributes(k, info, parts);
    if (!status && !parts) {
        const size_t size = scratch_bytes(k, STRIP);
        size_t most = atomic_load(&largest);
        while (size > most && !atomic_compare_exchange_weak(&largest, &most, size)) {}
        buffer *b = take(atomic_load(&largest));
        if (b) put_back(b);
        else status = ort.CreateStatus(ORT_FAIL, "out of memory");
    }
    if (status) free(k);
    else *out = k;
    return status;
}

typedef struct {
    const kernel *k;
    const ek_isa *isa;
    ek_matrix matrix[MAX_PARTS];
    const float *x;
    float *y;
    int n;
    uint8_t *act[EK_ACTS];
} job;

static void round_row(void *data, size_t i) {
    const job *j = data;
    for (int a = 0; a < EK_ACTS; a++)
        if (j->k->blocks[a])
            j->isa->quantize(a, j->k->blocks[a], j->k->columns, j->x, (size_t)j->k->columns, j->n, (int)i, (int)i + 1, j->act[a]);
}

static void multiply_chunk(void *data, size_t i) {
    const job *j = data;
    const kernel *k = j->k;
    const int64_t start = (int64_t)i * k->chunk, end = start + k->chunk;
    float *y = j->y;
    int64_t before = 0;  // groups of the parts before
    for (int p = 0; p < k->parts; p++) {
        const ek_matrix *m = &j->matrix[p];
        const int64_t groups = (m->rows + EK_ROWS - 1) / EK_ROWS;
        const int64_t g0 = start > before ? start - before : 0, g1 = end - before < groups ? end - before : groups;
        if (g0 < g1) j->isa->product(m, (int)g0, (int)g1, j->act[m->format->act], j->n, y, (size_t)k->rows);
        before += groups;
        y += m->rows;
    }
}

static OrtStatus *parallel(const OrtKernelContext *context, void (*task)(void *, size_t), size_t total, void *data) {
    if (total == 1) { task(data, 0); return NULL; }
    return ort.KernelContext_ParallelFor(context, task, total, 0, data);
}

static OrtStatus *shape(const OrtValue *value, int64_t *dimensions, size_t *count) {
    OrtTensorTypeAndShapeInfo *info = NULL;
    TRY(ort.GetTensorTypeAndShape(value, &info));
    OrtStatus *status = ort.GetDimensionsCount(info, count);
    if (!status && *count > MAX_DIMENSIONS) status = invalid("edgespec: too many dimensions");
    if (!status) status = ort.GetDimensions(info, dimensions, *count);
    ort.ReleaseTensorTypeAndShapeInfo(info);
    return status;
}

static OrtStatus *input(const OrtKernelContext *context, size_t i, const void **data, int64_t *dimensions, size_t *count) {
    const OrtValue *value = NULL;
    void *start = NULL;
    TRY(ort.KernelContext_GetInput(context, i, &value));
    TRY(shape(value, dimensions, count));
    TRY(ort.GetTensorMutableData((OrtValue *)(uintptr_t)value, &start));
    *data = start;
    return NULL;
}

static OrtStatus *weights(const OrtKernelContext *context, size_t i, const kernel *k, int part, ek_matrix *out) {
    int64_t dimensions[MAX_DIMENSIONS];
    size_t count = 0;
    const void *data = NULL;
    TRY(input(context, i, &data, dimensions, &count));
    if (count != 1 || (uint64_t)dimensions[0] != k->bytes[part]) return invalid("edgespec: a packed matrix has the wrong size");
    *out = k->matrix[part];
    out->data = data;
    out->act_blocks = k->blocks[out->format->act];
    return NULL;
}

static OrtStatus *output(OrtKernelContext *context, const int64_t *dimensions, size_t count, float **data) {
    OrtValue *value = NULL;
    void *start = NULL;
    TRY(ort.KernelContext_GetOutput(context, 0, dimensions, count, &value));
    TRY(ort.GetTensorMutableData(value, &start));
    *data = start;
    return NULL;
}

static OrtStatus *multiply(void *data, OrtKernelContext *context) {
    const kernel *k = data;
    job j = {.k = k, .isa = ek_active()};
    int64_t dimensions[MAX_DIMENSIONS];
    size_t count = 0, inputs = 0;
    const void *x = NULL;
    TRY(ort.KernelContext_GetInputCount(context, &inputs));
    if (inputs != (size_t)k->parts + 1) return invalid("GgufMatMul: one packed matrix for each part");
    TRY(input(context, 0, &x, dimensions, &count));
    if (!count || dimensions[count - 1] != k->columns) return invalid("GgufMatMul: the last dimension of X is not the matrix's columns");
    for (int p = 0; p < k->parts; p++) TRY(weights(context, (size_t)p + 1, k, p, &j.matrix[p]));
    int64_t n = 1;
    for (size_t i = 0; i + 1 < count; i++) n *= dimensions[i];
    dimensions[count - 1] = k->rows;
    TRY(output(context, dimensions, count, &j.y));
    j.x = x;
    if (n == 0) return NULL;

    buffer *scratch = take(scratch_bytes(k, (size_t)(n < STRIP ? n : STRIP)));
    if (!scratch) return ort.CreateStatus(ORT_FAIL, "out of memory");
    OrtStatus *status = NULL;
    for (; n > 0 && !status; n -= STRIP, j.x += (size_t)STRIP * (size_t)k->columns, j.y += (size_t)STRIP * (size_t)k->rows) {
        j.n = (int)(n < STRIP ? n : STRIP);
        uint8_t *next = scratch->data;
        for (int a = 0; a < EK_ACTS; a++) {
            j.act[a] = next;
            next += ((size_t)j.n * k->row_bytes[a] + 63) / 64 * 64;
        }
        if ((int64_t)j.n * k->columns < 16384)
            for (int i = 0; i < j.n; i++) round_row(&j, (size_t)i);
        else status = parallel(context, round_row, (size_t)j.n, &j);
        if (!status) status = parallel(context, multiply_chunk, (size_t)((k->groups + k->chunk - 1) / k->chunk), &j);
    }
    put_back(scratch);
    return status;
}

typedef struct { ek_matrix m; const int64_t *ids; float *y; } lookup;

static void get_row(void *data, size_t i) {
    const lookup *l = data;
    ek_get_row(&l->m, (int)l->ids[i], l->y + i * (size_t)l->m.columns);
}

static OrtStatus *gather(void *data, OrtKernelContext *context) {
    const kernel *k = data;
    lookup l;
    int64_t dimensions[MAX_DIMENSIONS];
    size_t count = 0, rows = 1;
    const void *ids = NULL;
    TRY(input(context, 0, &ids, dimensions, &count));
    TRY(weights(context, 1, k, 0, &l.m));
    if (count >= MAX_DIMENSIONS) return invalid("edgespec: too many dimensions");
    for (size_t i = 0; i < count; i++) rows *= (size_t)dimensions[i];
    l.ids = ids;
    for (size_t i = 0; i < rows; i++)
        if (l.ids[i] < 0 || l.ids[i] >= l.m.rows) return invalid("GgufGatherRows: a row outside of the matrix");
    dimensions[count] = k->columns;
    TRY(output(context, dimensions, count + 1, &l.y));
    if (rows > 4) return parallel(context, get_row, rows, &l);
    for (size_t i = 0; i < rows; i++) get_row(&l, i);
    return NULL;
}

static OrtStatus *create_multiply(const OrtCustomOp *op, const OrtFunction *api, const OrtKernelInfo *info, void **out) {
    (void)op; (void)api;
    return create(info, 0, out);
}
static OrtStatus *create_gather(const OrtCustomOp *op, const OrtFunction *api, const OrtKernelInfo *info, void **out) {
    (void)op; (void)api;
    return create(info, 1, out);
}
static const char *multiply_name(const OrtCustomOp *op) { (void)op; return "GgufMatMul"; }
static const char *gather_name(const OrtCustomOp *op) { (void)op; return "GgufGatherRows"; }
static const char *provider(const OrtCustomOp *op) { (void)op; return NULL; }  // CPU
static int multiply_input(const OrtCustomOp *op, size_t i) { (void)op; return i ? ORT_UINT8 : ORT_FLOAT; }
static int gather_input(const OrtCustomOp *op, size_t i) { (void)op; return i ? ORT_UINT8 : ORT_INT64; }
static int output_type(const OrtCustomOp *op, size_t i) { (void)op; (void)i; return ORT_FLOAT; }
static size_t two(const OrtCustomOp *op) { (void)op; return 2; }
static size_t one(const OrtCustomOp *op) { (void)op; return 1; }
static int at_least_one(const OrtCustomOp *op) { (void)op; return 1; }
static int variadic(const OrtCustomOp *op, size_t i) { (void)op; return i ? ORT_VARIADIC : ORT_REQUIRED; }
static int zero(const OrtCustomOp *op, size_t i) { (void)op; (void)i; return 0; }  // required; memory of the default kind

#define OPERATOR(name, input_type, characteristic, creator, compute) { \
        .version = 16, .GetName = name, .GetExecutionProviderType = provider, .GetInputType = input_type, .GetInputTypeCount = two, \
        .GetOutputType = output_type, .GetOutputTypeCount = one, .KernelDestroy = free, .GetInputCharacteristic = characteristic, \
        .GetOutputCharacteristic = zero, .GetInputMemoryType = zero, .GetVariadicInputMinArity = at_least_one, \
        .GetVariadicInputHomogeneity = at_least_one, .GetVariadicOutputMinArity = at_least_one, \
        .GetVariadicOutputHomogeneity = at_least_one, .CreateKernelV2 = creator, .KernelComputeV2 = compute}
static const OrtCustomOp MULTIPLY = OPERATOR(multiply_name, multiply_input, variadic, create_multiply, multiply);
static const OrtCustomOp GATHER = OPERATOR(gather_name, gather_input, zero, create_gather, gather);

// What SessionOptions.register_custom_ops_library calls. The domain is made once and never released: sessions keep its address.
EK_API OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base);
EK_API OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    static _Atomic(OrtCustomOpDomain *) made;
    const OrtFunction *api = base->GetApi(ORT_VERSION_NEEDED);
    if (!api) {
        api = base->GetApi(1);
        return ((OrtStatus * (*)(int, const char *)) api[0])(ORT_FAIL, "edgespec's operators need ONNX Runtime 1.17");
    }
#define LOAD(index, name, result, parameters) ort.name = (result(*) parameters)api[index];
    ORT_FUNCTIONS(LOAD)
    OrtCustomOpDomain *domain = atomic_load(&made), *first = NULL;
    if (!domain) {
        TRY(ort.CreateCustomOpDomain("edgespec", &domain));
        OrtStatus *status = ort.CustomOpDomain_Add(domain, &MULTIPLY);
        if (!status) status = ort.CustomOpDomain_Add(domain, &GATHER);
        if (status || !atomic_compare_exchange_strong(&made, &first, domain)) {
            ort.ReleaseCustomOpDomain(domain);
            if (status) return status;
            domain = first;
        }
    }
    return ort.AddCustomOpDomain(options, domain);
}
