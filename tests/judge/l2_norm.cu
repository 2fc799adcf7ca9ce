// Answers cases of `l2_norm` with a kernel on a GPU in f32, a block for each row. From the top of
// the source:
//   nvcc -std=c++17 -I. -I/usr/include/hdf5/serial tests/judge/l2_norm.cu -lhdf5_serial -o l2_norm
//   weft cases l2_norm cases --dtype f32 && (cd cases && ../l2_norm . *.h5) && weft judge cases
#include "tests/judge/case_file.h"

namespace {

constexpr int kThreads = 128;

// The sum of one number of each thread of the block, to all of them.
__device__ float sum_of_block(float value) {
  __shared__ float sums[kThreads];
  __syncthreads();
  sums[threadIdx.x] = value;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  __syncthreads();
  return sums[0];
}

__global__ void l2_norm(const float* x, const float* dy, float* y, float* dx, int columns,
                        float eps) {
  const size_t row = static_cast<size_t>(blockIdx.x) * columns;
  float squares = 0, along = 0;
  for (int d = threadIdx.x; d < columns; d += kThreads) squares += x[row + d] * x[row + d];
  const float scale = rsqrtf(sum_of_block(squares) + eps);
  for (int d = threadIdx.x; d < columns; d += kThreads) {
    y[row + d] = scale * x[row + d];
    along += y[row + d] * dy[row + d];
  }
  along = sum_of_block(along);
  for (int d = threadIdx.x; d < columns; d += kThreads)
    dx[row + d] = scale * (dy[row + d] - along * y[row + d]);
}

void check(cudaError_t code) {
  if (code == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(code));
  std::exit(2);
}

float* on_gpu(const std::vector<double>& numbers) {
  const std::vector<float> narrow(numbers.begin(), numbers.end());
  float* memory = nullptr;
  check(cudaMalloc(&memory, narrow.size() * sizeof(float) + 1));
  check(cudaMemcpy(memory, narrow.data(), narrow.size() * sizeof(float), cudaMemcpyHostToDevice));
  return memory;
}

void from_gpu(float* memory, std::vector<double>& numbers) {
  std::vector<float> narrow(numbers.size());
  check(cudaMemcpy(narrow.data(), memory, narrow.size() * sizeof(float), cudaMemcpyDeviceToHost));
  check(cudaFree(memory));
  numbers.assign(narrow.begin(), narrow.end());
}

}  // namespace

int main(int count, char** words) {
  for (int i = 2; i < count; ++i) {
    const answers::CaseFile file(words[1], words[i]);
    answers::Matrix x = file.matrix("inputs/x"), dy = file.matrix("grad_outputs/dy"), y = x, dx = x;
    float *in = on_gpu(x.x), *given = on_gpu(dy.x), *out = on_gpu(y.x), *back = on_gpu(dx.x);
    if (x.rows > 0) {
      l2_norm<<<static_cast<unsigned>(x.rows), kThreads>>>(in, given, out, back,
                                                           static_cast<int>(x.columns),
                                                           static_cast<float>(file.option("eps")));
      check(cudaGetLastError());
    }
    from_gpu(in, x.x);
    from_gpu(given, dy.x);
    from_gpu(out, y.x);
    from_gpu(back, dx.x);
    file.write("outputs/y", y, "inputs/x");
    file.write("gradients/dx", dx, "inputs/x");
  }
}
