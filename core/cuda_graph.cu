#include "core/cuda_graph.cuh"

namespace weft {

Pinned::Pinned(size_t bytes, Device device) {
  cuda_stream(device);  // makes the device current
  cuda_check(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault));
}
Pinned::~Pinned() { cudaFreeHost(data_); }

SideStream::SideStream(Device device) {
  cuda_stream(device);
  cuda_check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}
SideStream::~SideStream() {
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
}

Event::Event(Device device) : device_(device) {
  cuda_stream(device);
  cuda_check(cudaEventCreate(&event_));
}
Event::~Event() { cudaEventDestroy(event_); }
void Event::record() { cuda_check(cudaEventRecord(event_, cuda_stream(device_))); }
void Event::wait() const { cuda_check(cudaEventSynchronize(event_)); }
void Event::hold_back() const { cuda_check(cudaStreamWaitEvent(cuda_stream(device_), event_)); }
float Event::since(const Event& start) const {
  float ms = 0;
  cuda_check(cudaEventElapsedTime(&ms, start.event_, event_));
  return ms;
}

Graph::~Graph() { drop(); }

void Graph::drop() {
  if (exec_) cudaGraphExecDestroy(exec_);
  exec_ = nullptr;
}

void Graph::record(const std::function<void()>& work) {
  drop();
  const cudaStream_t stream = cuda_stream(device_);
  cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  cuda_check(cudaStreamEndCapture(stream, &graph));
  const cudaError_t status = cudaGraphInstantiate(&exec_, graph, 0);
  cudaGraphDestroy(graph);
  cuda_check(status);
  emptied_ = allocator(device_).times_emptied();
}

void Graph::launch() { cuda_check(cudaGraphLaunch(exec_, cuda_stream(device_))); }

bool Graph::good() const { return exec_ && emptied_ == allocator(device_).times_emptied(); }

}  // namespace weft
