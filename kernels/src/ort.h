// The part of ONNX Runtime's C API that the operators use, declared after its onnxruntime_c_api.h
// (https://github.com/microsoft/onnxruntime). OrtApi is a table of functions that only ever grows at its end, so an
// index keeps its meaning. Of that header:
//
// MIT License. Copyright (c) Microsoft Corporation
//
// Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
// documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
// rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
// persons to whom the Software is furnished to do so, subject to the following conditions:
// The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
// Software.
// THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
// WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
// COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
// OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
#ifndef EK_ORT_H
#define EK_ORT_H
#include <stddef.h>
#include <stdint.h>

enum { ORT_VERSION_NEEDED = 17 };  // KernelContext_ParallelFor came with 1.17

typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef void (*OrtFunction)(void);
typedef struct {
    const OrtFunction *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum { ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT32 = 6, ORT_INT64 = 7, ORT_FLOAT16 = 10 };  // ONNXTensorElementDataType
enum { ORT_REQUIRED = 0, ORT_VARIADIC = 2 };           // OrtCustomOpInputOutputCharacteristic

// X(index in OrtApi, name, result, parameters)
#define ORT_FUNCTIONS(X) \
    X(0, CreateStatus, OrtStatus *, (int code, const char *message)) \
    X(26, CreateCustomOpDomain, OrtStatus *, (const char *domain, OrtCustomOpDomain **out)) \
    X(27, CustomOpDomain_Add, OrtStatus *, (OrtCustomOpDomain *, const struct OrtCustomOp *)) \
    X(28, AddCustomOpDomain, OrtStatus *, (OrtSessionOptions *, OrtCustomOpDomain *)) \
    X(51, GetTensorMutableData, OrtStatus *, (OrtValue *, void **out)) \
    X(61, GetDimensionsCount, OrtStatus *, (const OrtTensorTypeAndShapeInfo *, size_t *out)) \
    X(62, GetDimensions, OrtStatus *, (const OrtTensorTypeAndShapeInfo *, int64_t *dimensions, size_t count)) \
    X(65, GetTensorTypeAndShape, OrtStatus *, (const OrtValue *, OrtTensorTypeAndShapeInfo **out)) \
    X(85, KernelInfoGetAttribute_float, OrtStatus *, (const OrtKernelInfo *, const char *name, float *out)) \
    X(86, KernelInfoGetAttribute_int64, OrtStatus *, (const OrtKernelInfo *, const char *name, int64_t *out)) \
    X(88, KernelContext_GetInputCount, OrtStatus *, (const OrtKernelContext *, size_t *out)) \
    X(90, KernelContext_GetInput, OrtStatus *, (const OrtKernelContext *, size_t index, const OrtValue **out)) \
    X(91, KernelContext_GetOutput, OrtStatus *, (OrtKernelContext *, size_t index, const int64_t *dimensions, size_t count, OrtValue **out)) \
    X(99, ReleaseTensorTypeAndShapeInfo, void, (OrtTensorTypeAndShapeInfo *)) \
    X(101, ReleaseCustomOpDomain, void, (OrtCustomOpDomain *)) \
    X(249, KernelInfoGetConstantInput_tensor, OrtStatus *, (const OrtKernelInfo *, size_t index, int *is_constant, const OrtValue **out)) \
    X(274, KernelContext_ParallelFor, OrtStatus *, (const OrtKernelContext *, void (*task)(void *, size_t), size_t total, size_t batches, void *data))

// OrtCustomOp as of version 16, which is what `version` says: later fields are not read.
typedef struct OrtCustomOp {
    uint32_t version;
    void *(*CreateKernel)(const struct OrtCustomOp *, const OrtFunction *, const OrtKernelInfo *);
    const char *(*GetName)(const struct OrtCustomOp *);
    const char *(*GetExecutionProviderType)(const struct OrtCustomOp *);
    int (*GetInputType)(const struct OrtCustomOp *, size_t index);
    size_t (*GetInputTypeCount)(const struct OrtCustomOp *);
    int (*GetOutputType)(const struct OrtCustomOp *, size_t index);
    size_t (*GetOutputTypeCount)(const struct OrtCustomOp *);
    void (*KernelCompute)(void *kernel, OrtKernelContext *);
    void (*KernelDestroy)(void *kernel);
    int (*GetInputCharacteristic)(const struct OrtCustomOp *, size_t index);
    int (*GetOutputCharacteristic)(const struct OrtCustomOp *, size_t index);
    int (*GetInputMemoryType)(const struct OrtCustomOp *, size_t index);
    int (*GetVariadicInputMinArity)(const struct OrtCustomOp *);
    int (*GetVariadicInputHomogeneity)(const struct OrtCustomOp *);
    int (*GetVariadicOutputMinArity)(const struct OrtCustomOp *);
    int (*GetVariadicOutputHomogeneity)(const struct OrtCustomOp *);
    OrtStatus *(*CreateKernelV2)(const struct OrtCustomOp *, const OrtFunction *, const OrtKernelInfo *, void **kernel);
    OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *);
    void *later[8];
} OrtCustomOp;
#endif
