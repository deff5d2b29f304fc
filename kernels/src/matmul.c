// Products with packed matrices, and their rows.
//   GgufMatMul(X float [..., columns], W0 uint8 [bytes], W1, …) → Y float [..., Σ rows]: X · Wᵀ, the products of the
//     matrices beside each other; X is rounded once. Attributes: columns, parts, and for each matrix type0, rows0, ….
//   GgufGatherRows(I int64 [...], W uint8 [bytes]) → Y float [..., columns]: rows of a matrix. Attributes: columns, type0, rows0.
// Types are GGUF's numbers (ek.h); W is packed (LAYOUT.md) and only read.
#include "operator.h"
#include <stdio.h>
#include <stdlib.h>

// STRIP: rows of activations that are rounded together. SMALL: values for which a second thread does not pay.
enum { MAX_PARTS = 8, STRIP = 256, CHUNKS = 64, CHUNK_BYTES = 1 << 15, SMALL = 1 << 14 };

// A node: its attributes, and what follows from them.
typedef struct {
    int columns, parts, rows, chunk;  // rows of all parts; groups of a chunk
    int64_t groups;                   // of all parts
    ek_matrix matrix[MAX_PARTS];
    size_t bytes[MAX_PARTS];
    int blocks[EK_ACTS];  // activation blocks of a row, 0 where no part takes this kind
    size_t row_bytes[EK_ACTS];
} kernel;

static OrtStatus *part_attribute(const OrtKernelInfo *info, const char *name, int part, int64_t most, int *out) {
    char full[32];
    snprintf(full, sizeof full, "%s%d", name, part);
    return ek_attribute(info, full, most, out);
}

static OrtStatus *read_attributes(kernel *k, const OrtKernelInfo *info, int parts) {
    TRY(ek_attribute(info, "columns", EK_MAX_COLUMNS, &k->columns));
    k->parts = parts;
    if (!parts) TRY(ek_attribute(info, "parts", MAX_PARTS, &k->parts));
    if (!k->parts || !k->columns) return ek_invalid("an edgespec operator needs columns and parts");
    size_t total = 0;
    for (int i = 0; i < k->parts; i++) {
        int type = 0, rows = 0;
        TRY(part_attribute(info, "type", i, 1 << 20, &type));
        TRY(part_attribute(info, "rows", i, EK_MAX_ROWS, &rows));
        k->bytes[i] = ek_packed_bytes(type, rows, k->columns);
        if (!k->bytes[i]) return ek_invalid("edgespec: a matrix's type is unknown, or its columns are no whole number of blocks");
        const ek_format *f = ek_format_of(type);
        k->matrix[i] = (ek_matrix){f, rows, k->columns, NULL, 0};
        k->rows += rows;
        k->groups += (rows + EK_ROWS - 1) / EK_ROWS;
        total += k->bytes[i];
        const int blocks = ek_act_blocks(f, k->columns);
        if (blocks > k->blocks[f->act]) k->blocks[f->act] = blocks;
        k->row_bytes[f->act] = 4 * (size_t)k->blocks[f->act] * (size_t)ek_act_words(f->act);
    }
    // Chunks of at least CHUNK_BYTES, and at most CHUNKS of them.
    const size_t group = total / (size_t)k->groups + 1;
    const int64_t least = (int64_t)((CHUNK_BYTES + group - 1) / group), share = (k->groups + CHUNKS - 1) / CHUNKS;
    k->chunk = (int)(least > share ? least : share);
    return NULL;
}

// Bytes of n rows of rounded activations, in all the ways in which the parts take them.
static size_t scratch_bytes(const kernel *k, size_t n) {
    size_t bytes = 0;
    for (int a = 0; a < EK_ACTS; a++) bytes += (n * k->row_bytes[a] + 63) / 64 * 64;
    return bytes;
}

// A node of `parts` parts, or of as many as its attribute has (0). Only products take scratch memory.
static OrtStatus *create(const OrtKernelInfo *info, int parts, void **out) {
    kernel *k = calloc(1, sizeof *k);
    if (!k) return ek_out_of_memory();
    OrtStatus *status = read_attributes(k, info, parts);
    if (!status && !parts) {
        ek_buffer *b = ek_take(scratch_bytes(k, STRIP));
        if (b) ek_put_back(b);
        else status = ek_out_of_memory();
    }
    if (status) free(k);
    else *out = k;
    return status;
}

// A run of a node, strip by strip.
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

// Chunk i of the groups of all parts, for all rows of a strip.
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

// The matrix of a part, from input i.
static OrtStatus *weights(const OrtKernelContext *context, size_t i, const kernel *k, int part, ek_matrix *out) {
    ek_tensor w;
    TRY(ek_input(context, i, 1, &w));
    if (w.count != 1 || (uint64_t)w.dimensions[0] != k->bytes[part]) return ek_invalid("edgespec: a packed matrix has the wrong size");
    *out = k->matrix[part];
    out->data = w.data;
    out->act_blocks = k->blocks[out->format->act];
    return NULL;
}

static OrtStatus *multiply(void *data, OrtKernelContext *context) {
    const kernel *k = data;
    job j = {.k = k, .isa = ek_active()};
    ek_tensor x;
    size_t inputs = 0;
    TRY(ek_ort.KernelContext_GetInputCount(context, &inputs));
    if (inputs != (size_t)k->parts + 1) return ek_invalid("GgufMatMul: one packed matrix for each part");
    TRY(ek_input(context, 0, sizeof(float), &x));
    if (!x.count || x.dimensions[x.count - 1] != k->columns)
        return ek_invalid("GgufMatMul: the last dimension of X is not the matrix's columns");
    for (int p = 0; p < k->parts; p++) TRY(weights(context, (size_t)p + 1, k, p, &j.matrix[p]));
    int64_t n = (int64_t)ek_product(x.dimensions, x.count - 1);
    x.dimensions[x.count - 1] = k->rows;
    TRY(ek_output(context, 0, x.dimensions, x.count, &j.y));
    j.x = x.data;
    if (n == 0) return NULL;

    ek_buffer *scratch = ek_take(scratch_bytes(k, (size_t)(n < STRIP ? n : STRIP)));
    if (!scratch) return ek_out_of_memory();
    OrtStatus *status = NULL;
    for (; n > 0 && !status; n -= STRIP, j.x += (size_t)STRIP * (size_t)k->columns, j.y += (size_t)STRIP * (size_t)k->rows) {
        j.n = (int)(n < STRIP ? n : STRIP);
        uint8_t *next = scratch->data;
        for (int a = 0; a < EK_ACTS; a++) {
            j.act[a] = next;
            next += ((size_t)j.n * k->row_bytes[a] + 63) / 64 * 64;
        }
        if ((int64_t)j.n * k->columns < SMALL)
            for (int i = 0; i < j.n; i++) round_row(&j, (size_t)i);
        else status = ek_parallel(context, round_row, (size_t)j.n, &j);
        if (!status) status = ek_parallel(context, multiply_chunk, (size_t)((k->groups + k->chunk - 1) / k->chunk), &j);
    }
    ek_put_back(scratch);
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
    ek_tensor ids;
    TRY(ek_input(context, 0, sizeof(int64_t), &ids));
    TRY(weights(context, 1, k, 0, &l.m));
    if (ids.count >= MAX_DIMENSIONS) return ek_invalid("edgespec: too many dimensions");
    const size_t rows = ek_product(ids.dimensions, ids.count);
    l.ids = ids.data;
    for (size_t i = 0; i < rows; i++)
        if (l.ids[i] < 0 || l.ids[i] >= l.m.rows) return ek_invalid("GgufGatherRows: a row outside of the matrix");
    ids.dimensions[ids.count] = k->columns;
    TRY(ek_output(context, 0, ids.dimensions, ids.count + 1, &l.y));
    if (rows > 4) return ek_parallel(context, get_row, rows, &l);
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
static int multiply_input(const OrtCustomOp *op, size_t i) { (void)op; return i ? ORT_UINT8 : ORT_FLOAT; }
static int gather_input(const OrtCustomOp *op, size_t i) { (void)op; return i ? ORT_UINT8 : ORT_INT64; }
static int variadic(const OrtCustomOp *op, size_t i) { (void)op; return i ? ORT_VARIADIC : ORT_REQUIRED; }

const OrtCustomOp EK_MULTIPLY = EK_OPERATOR(multiply_name, multiply_input, ek_count_2, variadic, ek_count_1, create_multiply, multiply);
const OrtCustomOp EK_GATHER = EK_OPERATOR(gather_name, gather_input, ek_count_2, ek_required, ek_count_1, create_gather, gather);
