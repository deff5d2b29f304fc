// What the operators share: ONNX Runtime's functions, inputs and outputs, scratch memory.
#ifndef EK_OPERATOR_H
#define EK_OPERATOR_H
#include "ek.h"
#include "ort.h"

enum { MAX_DIMENSIONS = 8 };

#define FIELD(index, name, result, parameters) result(*name) parameters;
typedef struct { ORT_FUNCTIONS(FIELD) } ek_ort_functions;
extern ek_ort_functions ek_ort;
#define TRY(call) do { OrtStatus *status_ = (call); if (status_) return status_; } while (0)

OrtStatus *ek_invalid(const char *message);
OrtStatus *ek_out_of_memory(void);
// An attribute between 0 and `most`.
OrtStatus *ek_attribute(const OrtKernelInfo *info, const char *name, int64_t most, int *out);

typedef struct { const void *data; int64_t dimensions[MAX_DIMENSIONS]; size_t count; } ek_tensor;
// Input i, with elements of `size` bytes, at an address that is a multiple of it.
OrtStatus *ek_input(const OrtKernelContext *context, size_t i, size_t size, ek_tensor *out);
OrtStatus *ek_output(OrtKernelContext *context, size_t i, const int64_t *dimensions, size_t count, float **data);
size_t ek_product(const int64_t *dimensions, size_t count);
// Runs task(data, 0 … total − 1) on ONNX Runtime's threads.
OrtStatus *ek_parallel(const OrtKernelContext *context, void (*task)(void *, size_t), size_t total, void *data);

// A run takes a buffer and puts it back; all are as large as the largest that any node wants, so that a pass allocates
// nothing: only the first one does, or one that runs at the same time as another for the first time.
typedef struct { size_t size; uint8_t *data; void *whole; } ek_buffer;
ek_buffer *ek_take(size_t size);  // NULL: out of memory
void ek_put_back(ek_buffer *buffer);

extern const OrtCustomOp EK_MULTIPLY, EK_GATHER, EK_NORM, EK_ADD_NORM, EK_GATE, EK_ATTENTION;

// An operator on the CPU with float outputs. `inputs` and `outputs`: how many; the last input may be variadic.
const char *ek_provider(const OrtCustomOp *op);
int ek_float_type(const OrtCustomOp *op, size_t i);
int ek_one(const OrtCustomOp *op);
int ek_required(const OrtCustomOp *op, size_t i);
size_t ek_count_1(const OrtCustomOp *op);
size_t ek_count_2(const OrtCustomOp *op);
#define EK_OPERATOR(name, input_type, inputs, characteristic, outputs, creator, compute) { \
        .version = 16, .GetName = name, .GetExecutionProviderType = ek_provider, .GetInputType = input_type, \
        .GetInputTypeCount = inputs, .GetOutputType = ek_float_type, .GetOutputTypeCount = outputs, .KernelDestroy = free, \
        .GetInputCharacteristic = characteristic, .GetOutputCharacteristic = ek_required, .GetInputMemoryType = ek_required, \
        .GetVariadicInputMinArity = ek_one, .GetVariadicInputHomogeneity = ek_one, .GetVariadicOutputMinArity = ek_one, \
        .GetVariadicOutputHomogeneity = ek_one, .CreateKernelV2 = creator, .KernelComputeV2 = compute}
#endif
