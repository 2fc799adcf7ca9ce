/* The C interface of Weft's operations: each takes named tensors in DLPack's layout and gives named
   tensors back, forward and backward, on the CPU and, where the library was built for it, on a GPU.

   - A call that fails returns NULL or a status that is not WEFT_OK, and weft_error() says why.
     Nothing is thrown and nothing is printed.
   - Inputs are borrowed for the time of the call and never written. Results are the caller's.
   - Any thread may call. Calls take turns, and each uses all threads of OpenMP.
   - Strict C99, with one include: DLPack's own header where the compiler finds it, else the same
     declarations below. A program with a copy of that header elsewhere includes it first. */
#ifndef WEFT_WEFT_H_
#define WEFT_WEFT_H_

#include <stddef.h>
#include <stdint.h>

#ifndef DLPACK_DLPACK_H_
#ifdef __has_include
#if __has_include(<dlpack/dlpack.h>)
#include <dlpack/dlpack.h>
#endif
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

#ifndef DLPACK_DLPACK_H_
#define DLPACK_DLPACK_H_
/* The part of DLPack 0.6 that is used here. Its layout is part of every later version as well. */
typedef enum { kDLCPU = 1, kDLCUDA = 2, kDLCUDAHost = 3 } DLDeviceType;
typedef struct {
  DLDeviceType device_type;
  int device_id;
} DLDevice;
typedef enum { kDLInt = 0U, kDLUInt = 1U, kDLFloat = 2U, kDLBfloat = 4U } DLDataTypeCode;
typedef struct {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
} DLDataType;
typedef struct {
  void* data;
  DLDevice device;
  int ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides; /* in elements; NULL: row-major without gaps */
  uint64_t byte_offset;
} DLTensor;
typedef struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(struct DLManagedTensor* self);
} DLManagedTensor;
#endif

/* The version of this interface. A call of another version is refused, so a program can never read
   a structure that was laid out otherwise. */
enum { WEFT_INTERFACE = 1 };

/* What a call returns. */
enum {
  WEFT_OK = 0,
  WEFT_FAULT = 1,  /* a fault of the library itself */
  WEFT_MISTAKE = 2 /* a mistake in what was given, or a machine that has too little */
};

int weft_interface(void);       /* that of the library, to compare with WEFT_INTERFACE */
const char* weft_version(void); /* "0.1.0" */
const char* weft_error(void);   /* why this thread's last call failed; "" where it did not */
int weft_has_cuda(void);        /* 1 where the library was built for GPUs */
/* NULL where the GPU can be used, else what is missing and what to do. */
const char* weft_why_no_cuda(int index);

/* --- What there is ------------------------------------------------------------------------- */

/* The operations' names in order, and how many there are. */
const char* const* weft_operations(size_t* count);

enum {
  WEFT_INPUT = 0,  /* a float tensor; it has a gradient */
  WEFT_INDEX = 1,  /* an integer tensor; it may be absent unless the operation says otherwise */
  WEFT_OUTPUT = 2, /* a float tensor; its gradient may be given to weft_backward */
  WEFT_SETTING = 3 /* a number, a word, true or false, as text */
};

typedef struct weft_field {
  const char* name;
  int kind;
  int optional;         /* an input that may be absent, an output that some settings leave out */
  int wide;             /* f32 where the other tensors are bf16 */
  const char* shape;    /* "[B, T, H, K]"; "" where the help says it, and of a setting */
  const char* gradient; /* the name of its gradient: "dq", "dout"; "" where it has none */
  const char* standard; /* of a setting: its value where none is given */
  const char* help;     /* of a setting and of an index tensor */
} weft_field;

/* All that an operation reads, makes and can be told, inputs first. NULL for an unknown name. */
const weft_field* weft_fields(const char* operation, size_t* count);
/* Its forms, the one that trains ("chunkwise") last. NULL for an unknown name. */
const char* const* weft_forms(const char* operation, size_t* count);

/* --- Calls ----------------------------------------------------------------------------------- */

/* Floats are f64, f32 or bf16, all of one call alike but for wide fields; index tensors are i32 and
   masks u8 or bool. Up to 6 dimensions. On a CPU any strides; on a GPU none that are negative. */
typedef struct weft_tensor {
  const char* name;
  const DLTensor* tensor;
} weft_tensor;

typedef struct weft_setting {
  const char* name;
  const char* value;
} weft_setting;

/* One operation on some tensors. Fields that are left zero are absent. */
typedef struct weft_call {
  int interface_version; /* WEFT_INTERFACE */
  const char* operation;
  const char* form; /* "naive", "recurrent"; NULL: "chunkwise", the one that trains */
  const weft_tensor* inputs;
  size_t input_count;
  const weft_setting* settings;
  size_t setting_count;
  /* For weft_backward. An output's gradient that is absent is zero. */
  const weft_tensor* output_gradients;
  size_t output_gradient_count;
  const char* const* constants; /* names of inputs whose gradient nobody wants */
  size_t constant_count;
  void* stream; /* on a GPU: the cudaStream_t that the work is ordered on; NULL: the standard one */
} weft_call;

/* Named tensors. On a GPU their numbers are there once the call's stream gets so far. */
typedef struct weft_result weft_result;

/* The outputs by name, index tensors that the operation writes among them. */
int weft_forward(const weft_call* call, weft_result** result);
/* The gradients of the inputs, by the names of the gradients. They are those of the sum of all
   outputs times their gradients. The forward pass is made anew in it. */
int weft_backward(const weft_call* call, weft_result** result);

size_t weft_result_count(const weft_result* result);
/* NULL for an index past the end. */
const char* weft_result_name(const weft_result* result, size_t index);
/* A view that lives as long as the result. NULL for an index past the end. */
const DLTensor* weft_result_tensor(const weft_result* result, size_t index);
/* The same memory as a tensor of its own, which outlives the result: its deleter lets it go. NULL
   for an index past the end. */
DLManagedTensor* weft_result_managed(const weft_result* result, size_t index);
void weft_result_free(weft_result* result); /* NULL does nothing */

#ifdef __cplusplus
}
#endif

#endif
