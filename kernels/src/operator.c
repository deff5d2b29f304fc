// The operators of ONNX Runtime, domain "edgespec": registration, and what they share. matmul.c and layer.c have them.
#include "operator.h"
#include "export.h"
#include <stdatomic.h>
#include <stdlib.h>

enum { SLOTS = 64 };  // buffers that are kept; more at the same time are freed after use

ek_ort_functions ek_ort;

OrtStatus *ek_invalid(const char *message) { return ek_ort.CreateStatus(ORT_INVALID_ARGUMENT, message); }
OrtStatus *ek_out_of_memory(void) { return ek_ort.CreateStatus(ORT_FAIL, "out of memory"); }

static _Atomic(ek_buffer *) slots[SLOTS];
static _Atomic size_t largest;

static void drop(ek_buffer *b) { if (b) { free(b->whole); free(b); } }

static ek_buffer *make(size_t size) {
    ek_buffer *b = malloc(sizeof *b);
    if (!b) return NULL;
    b->whole = malloc(size + 64);
    if (!b->whole) { free(b); return NULL; }
    b->size = size;
    b->data = (uint8_t *)(((uintptr_t)b->whole + 63) / 64 * 64);
    return b;
}

ek_buffer *ek_take(size_t size) {
    size_t most = atomic_load(&largest);
    while (size > most && !atomic_compare_exchange_weak(&largest, &most, size)) {}
    for (int i = 0; i < SLOTS; i++) {
        ek_buffer *b = atomic_exchange(&slots[i], NULL);
        if (b && b->size >= size) return b;
        drop(b);
    }
    most = atomic_load(&largest);
    return make(size > most ? size : most);
}

void ek_put_back(ek_buffer *b) {
    for (int i = 0; i < SLOTS; i++) {
        ek_buffer *empty = NULL;
        if (atomic_compare_exchange_strong(&slots[i], &empty, b)) return;
    }
    drop(b);
}

OrtStatus *ek_attribute(const OrtKernelInfo *info, const char *name, int64_t most, int *out) {
    int64_t value = 0;
    TRY(ek_ort.KernelInfoGetAttribute_int64(info, name, &value));
    if (value < 0 || value > most) return ek_invalid("an attribute of an edgespec operator is out of range");
    *out = (int)value;
    return NULL;
}

static OrtStatus *shape(const OrtValue *value, ek_tensor *out) {
    OrtTensorTypeAndShapeInfo *info = NULL;
    TRY(ek_ort.GetTensorTypeAndShape(value, &info));
    OrtStatus *status = ek_ort.GetDimensionsCount(info, &out->count);
    if (!status && out->count > MAX_DIMENSIONS) status = ek_invalid("edgespec: too many dimensions");
    if (!status) status = ek_ort.GetDimensions(info, out->dimensions, out->count);
    ek_ort.ReleaseTensorTypeAndShapeInfo(info);
    return status;
}

OrtStatus *ek_input(const OrtKernelContext *context, size_t i, size_t size, ek_tensor *out) {
    const OrtValue *value = NULL;
    void *data = NULL;
    TRY(ek_ort.KernelContext_GetInput(context, i, &value));
    if (!value) return ek_invalid("edgespec: a node lacks an input");
    TRY(shape(value, out));
    TRY(ek_ort.GetTensorMutableData((OrtValue *)(uintptr_t)value, &data));
    if ((uintptr_t)data % size) return ek_invalid("edgespec: an input is not aligned");
    out->data = data;
    return NULL;
}

OrtStatus *ek_output(OrtKernelContext *context, size_t i, const int64_t *dimensions, size_t count, float **data) {
    OrtValue *value = NULL;
    void *start = NULL;
    TRY(ek_ort.KernelContext_GetOutput(context, i, dimensions, count, &value));
    if (!value) return ek_invalid("edgespec: a node lacks an output");
    TRY(ek_ort.GetTensorMutableData(value, &start));
    *data = start;
    return NULL;
}

size_t ek_product(const int64_t *dimensions, size_t count) {
    size_t product = 1;
    for (size_t i = 0; i < count; i++) product *= (size_t)dimensions[i];
    return product;
}

OrtStatus *ek_parallel(const OrtKernelContext *context, void (*task)(void *, size_t), size_t total, void *data) {
    if (total == 1) { task(data, 0); return NULL; }
    return ek_ort.KernelContext_ParallelFor(context, task, total, 0, data);
}

const char *ek_provider(const OrtCustomOp *op) { (void)op; return NULL; }  // CPU
int ek_float_type(const OrtCustomOp *op, size_t i) { (void)op; (void)i; return ORT_FLOAT; }
int ek_one(const OrtCustomOp *op) { (void)op; return 1; }
int ek_required(const OrtCustomOp *op, size_t i) { (void)op; (void)i; return ORT_REQUIRED; }  // and memory of the default kind
size_t ek_count_1(const OrtCustomOp *op) { (void)op; return 1; }
size_t ek_count_2(const OrtCustomOp *op) { (void)op; return 2; }

// Functions and domain are made once and never released: sessions keep the domain's address.
static OrtStatus *make_domain(const OrtFunction *api, OrtCustomOpDomain **out) {
    static const OrtCustomOp *const OPERATORS[] = {&EK_MULTIPLY, &EK_GATHER, &EK_NORM, &EK_ADD_NORM, &EK_GATE, &EK_ATTENTION};
#define LOAD(index, name, result, parameters) ek_ort.name = (result(*) parameters)api[index];
    ORT_FUNCTIONS(LOAD)
    OrtCustomOpDomain *domain = NULL;
    TRY(ek_ort.CreateCustomOpDomain("edgespec", &domain));
    OrtStatus *status = NULL;
    for (size_t i = 0; i < sizeof OPERATORS / sizeof *OPERATORS && !status; i++)
        status = ek_ort.CustomOpDomain_Add(domain, OPERATORS[i]);
    if (status) ek_ort.ReleaseCustomOpDomain(domain);
    else *out = domain;
    return status;
}

// What SessionOptions.register_custom_ops_library calls.
EK_API OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base);
EK_API OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    static atomic_flag busy = ATOMIC_FLAG_INIT;
    static const OrtFunction *first;
    static OrtCustomOpDomain *domain;
    OrtStatus *(*const refuse)(int, const char *) = (OrtStatus * (*)(int, const char *)) base->GetApi(1)[0];
    const OrtFunction *api = base->GetApi(ORT_VERSION_NEEDED);
    if (!api) return refuse(ORT_FAIL, "edgespec's operators need ONNX Runtime 1.17");
    while (atomic_flag_test_and_set(&busy)) {}  // another thread makes the domain
    OrtStatus *status = NULL;
    if (!domain && !(status = make_domain(api, &domain))) first = api;
    if (!status && first != api) status = refuse(ORT_FAIL, "edgespec's operators serve another ONNX Runtime of this process");
    atomic_flag_clear(&busy);
    return status ? status : ek_ort.AddCustomOpDomain(options, domain);
}
