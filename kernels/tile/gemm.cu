#include "kernels/tile/gemm.h"

#include <cublasLt.h>

#include <array>
#include <map>
#include <mutex>

#include "core/cuda.cuh"
#include "core/library.h"

namespace weft::kernels {
namespace {

constexpr size_t kWorkspace = size_t{32} << 20;

// The functions that we use, with the types that the header gives them.
struct Library {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtGetVersion) version;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtGetStatusString) status_string;
};

const Library& library() {
  static const Library all = [] {
    const std::string name = concat("libcublasLt.so.", CUBLAS_VER_MAJOR);
    void* const handle = open_library({name});
    require(handle != nullptr, name,
            " was not found: it comes with the CUDA toolkit, and with PyTorch's nvidia-cublas "
            "package. Install it, or name its folder in LD_LIBRARY_PATH; or use --device cpu");
    Library l{};
    find_function(handle, "cublasLtCreate", l.create);
    find_function(handle, "cublasLtGetVersion", l.version);
    find_function(handle, "cublasLtMatmul", l.matmul);
    find_function(handle, "cublasLtMatmulDescCreate", l.desc_create);
    find_function(handle, "cublasLtMatmulDescSetAttribute", l.desc_set);
    find_function(handle, "cublasLtMatrixLayoutCreate", l.layout_create);
    find_function(handle, "cublasLtMatmulPreferenceCreate", l.preference_create);
    find_function(handle, "cublasLtMatmulPreferenceSetAttribute", l.preference_set);
    find_function(handle, "cublasLtMatmulAlgoGetHeuristic", l.heuristic);
    find_function(handle, "cublasLtGetStatusString", l.status_string);
    return l;
  }();
  return all;
}

void check(cublasStatus_t status, const char* what) {
  require(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt: ", what, ": ",
          library().status_string(status));
}

bool tf32 = false;

// A product's shape in the library's terms (columns first, hence operands in turned order).
struct Key {
  int64_t m, n, k, lda, ldb, ldc;
  int device, ta, tb, operands, result, has_bias, add, tf32, alignment;
  auto operator<=>(const Key&) const = default;
};

struct Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
};

cudaDataType_t type_of(Dtype t) { return t == Dtype::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

cublasLtHandle_t handle() {
  static const cublasLtHandle_t one = [] {
    cublasLtHandle_t h = nullptr;
    check(library().create(&h), "create");
    return h;
  }();
  return one;
}

cublasLtMatrixLayout_t layout(Dtype t, int64_t rows, int64_t columns, int64_t ld) {
  cublasLtMatrixLayout_t l = nullptr;
  check(library().layout_create(&l, type_of(t), static_cast<uint64_t>(rows),
                                static_cast<uint64_t>(columns), ld),
        "layout");
  return l;
}

template <class Real>
void set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute, const Real& value) {
  check(library().desc_set(d, attribute, &value, sizeof value), "attribute");
}

// c^T = b^T a^T in columns: the library's first operand is our b.
Plan make_plan(const Key& key, Dtype operands, Dtype result, const void* bias) {
  Plan p;
  const cublasComputeType_t compute =
      operands == Dtype::f32 && key.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  check(library().desc_create(&p.desc, compute, CUDA_R_32F), "descriptor");
  const cublasOperation_t first = key.tb ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t second = key.ta ? CUBLAS_OP_T : CUBLAS_OP_N;
  set(p.desc, CUBLASLT_MATMUL_DESC_TRANSA, first);
  set(p.desc, CUBLASLT_MATMUL_DESC_TRANSB, second);
  if (key.has_bias) {
    set(p.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(p.desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(result));
    set(p.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  }
  p.a = key.tb ? layout(operands, key.k, key.n, key.ldb) : layout(operands, key.n, key.k, key.ldb);
  p.b = key.ta ? layout(operands, key.m, key.k, key.lda) : layout(operands, key.k, key.m, key.lda);
  p.c = layout(result, key.n, key.m, key.ldc);
  cublasLtMatmulPreference_t preference = nullptr;
  check(library().preference_create(&preference), "preference");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
    check(library().preference_set(preference, what, &value, sizeof value), "preference");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
  // Sums over slices of k in a second pass, never by atomics: the same bits on every run.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  const auto least = static_cast<uint32_t>(key.alignment);
  for (const auto which :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    prefer(which, least);
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const cublasStatus_t status =
      library().heuristic(handle(), p.desc, p.a, p.b, p.c, p.c, preference, 1, &found, &count);
  require(status == CUBLAS_STATUS_SUCCESS && count > 0, "cuBLASLt: no algorithm for a product [",
          key.m, ", ", key.k, "] x [", key.k, ", ", key.n, "] of ", operands, " into ", result);
  p.algorithm = found.algo;
  return p;
}

// One for each device, kept: products of one stream may share it. A plan counts it too.
Tensor& workspace(Device device) {
  static auto* const all = new std::map<std::pair<DeviceType, int>, Tensor>;
  Tensor& w = (*all)[{device.type, device.index}];
  if (!w) {
    const OwnerScope owner("cuBLASLt");
    w = empty({static_cast<int64_t>(kWorkspace)}, Dtype::u8, device);
  }
  return w;
}

bool by_rows(const Tensor& t) {
  return t.stride(1) == 1 && (t.stride(0) >= t.size(1) || t.size(0) == 1);
}
bool by_columns(const Tensor& t) {
  return t.stride(0) == 1 && (t.stride(1) >= t.size(0) || t.size(1) == 1);
}
Tensor lined(const Tensor& t) { return by_rows(t) || by_columns(t) ? t : t.contiguous(); }

int64_t leading(const Tensor& t) {
  return by_rows(t) ? std::max(t.stride(0), t.size(1)) : std::max(t.stride(1), t.size(0));
}

// The largest power of two, up to 16, that divides address and row length in bytes.
int alignment_of(const Tensor& t, int64_t ld) {
  const auto bits =
      reinterpret_cast<uintptr_t>(t.raw()) | static_cast<uintptr_t>(ld * size_of(t.dtype())) | 16;
  return static_cast<int>(bits & ~(bits - 1));
}

constexpr int kTile = 32;

// Sums of kRows rows for 32 columns at a time: partial[slice, n].
template <class Real>
__global__ void column_partials(const Real* x, int64_t stride, const Real* factor,
                                int64_t factor_stride, int64_t rows, int64_t n,
                                int64_t rows_a_slice, float* partial) {
  __shared__ float part[8][kTile + 1];
  const int64_t column = blockIdx.x * int64_t{kTile} + threadIdx.x;
  const int64_t begin = blockIdx.y * rows_a_slice, end = min(rows, begin + rows_a_slice);
  float sum = 0;
  if (column < n)
    for (int64_t r = begin + threadIdx.y; r < end; r += 8)
      sum += to_float(x[r * stride + column]) *
             (factor ? to_float(factor[r * factor_stride + column]) : 1.0f);
  part[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || column >= n) return;
  for (int i = 1; i < 8; ++i) sum += part[i][threadIdx.x];
  partial[blockIdx.y * n + column] = sum;
}

template <class Real>
__global__ void column_totals(const float* partial, int64_t slices, int64_t n, Real* out) {
  const int64_t column = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (column >= n) return;
  float sum = 0;
  for (int64_t s = 0; s < slices; ++s) sum += partial[s * n + column];
  out[column] = from_float<Real>(sum);
}

}  // namespace

void set_tf32(bool on) { tf32 = on; }

std::string cublas_version() {
  const size_t v = library().version();
  return concat(v / 10000, ".", v / 100 % 100, ".", v % 100);
}

void cuda_gemm(const Tensor& a_in, const Tensor& b_in, const Tensor& c, const GemmOptions& o) {
  require(a_in.dims() == 2 && b_in.dims() == 2 && c.dims() == 2 && a_in.size(1) == b_in.size(0) &&
              c.size(0) == a_in.size(0) && c.size(1) == b_in.size(1) &&
              a_in.dtype() == b_in.dtype() && by_rows(c),
          "gemm: ", a_in.dtype(), " ", a_in.shape(), " times ", b_in.dtype(), " ", b_in.shape(),
          " into ", c.shape());
  const Tensor a = lined(a_in), b = lined(b_in);
  c.mark_written();
  const Device device = c.device();
  const Tensor& room = workspace(device);
  if (c.is_meta() || c.numel() == 0) return;
  const int64_t m = c.size(0), n = c.size(1), k = a.size(1);
  if (k == 0) {
    if (o.beta == 0) c.zero();
    return;
  }
  const Key key{m,
                n,
                k,
                leading(a),
                leading(b),
                leading(c),
                device.index,
                !by_rows(a),
                !by_rows(b),
                static_cast<int>(a.dtype()),
                static_cast<int>(c.dtype()),
                o.bias.defined(),
                o.beta != 0,
                tf32,
                std::min({alignment_of(a, leading(a)), alignment_of(b, leading(b)),
                          alignment_of(c, leading(c))})};
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  static auto* const plans = new std::map<Key, Plan>;
  auto found = plans->find(key);
  if (found == plans->end())
    found = plans->emplace(key, make_plan(key, a.dtype(), c.dtype(), o.bias.raw())).first;
  const Plan& p = found->second;
  if (o.bias)
    set(p.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(o.bias.raw()));
  check(library().matmul(handle(), p.desc, &o.alpha, b.raw(), p.a, a.raw(), p.b, &o.beta, c.raw(),
                         p.c, c.raw(), p.c, &p.algorithm, room.raw(), kWorkspace,
                         cuda_stream(device)),
        "product");
}

void cuda_column_sums(const Tensor& x_in, const Tensor& out, const Tensor& factor_in) {
  const auto with_rows = [](const Tensor& t) {
    return !t || t.stride(1) == 1 || t.size(1) == 1 ? t : t.contiguous();
  };
  const Tensor x = with_rows(x_in), factor = with_rows(factor_in);
  const int64_t rows = x.size(0), n = x.size(1);
  // Slices by shape alone: enough blocks for a large GPU, at least 64 rows each.
  const int64_t slices = std::clamp<int64_t>(512 / std::max<int64_t>(1, ceil_div(n, kTile)), 1,
                                             std::max<int64_t>(1, ceil_div(rows, 64)));
  const Tensor partial = empty({slices, n}, Dtype::f32, x.device());
  out.mark_written();
  if (x.is_meta() || n == 0) return;
  const cudaStream_t stream = cuda_stream(x.device());
  const dim3 grid(static_cast<unsigned>(ceil_div(n, kTile)), static_cast<unsigned>(slices));
  for_cuda_dtype(x.dtype(), [&]<class Real>() {
    column_partials<<<grid, dim3(kTile, 8), 0, stream>>>(
        dptr<const Real>(x), x.stride(0), dptr<const Real>(factor), factor ? factor.stride(0) : 0,
        rows, n, std::max<int64_t>(1, ceil_div(rows, slices)), dptr<float>(partial));
  });
  for_cuda_dtype(out.dtype(), [&]<class Real>() {
    column_totals<<<static_cast<unsigned>(ceil_div(n, 256)), 256, 0, stream>>>(
        dptr<const float>(partial), slices, n, dptr<Real>(out));
  });
  check_launch("column sums");
}

}  // namespace weft::kernels
