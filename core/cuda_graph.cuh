// Work of the GPU that the host need not wait for: memory that copies go to without staging, marks
// in a stream, and recorded work that is launched as one.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "core/cuda.cuh"

namespace weft {

// Page-locked host memory.
class Pinned {
 public:
  Pinned(size_t bytes, Device device);
  ~Pinned();
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// A stream beside the device's own, for copies that need not stand in line. Whoever uses it orders
// it by events, and memory from the allocator is not to be given back while it is in use there.
class SideStream {
 public:
  explicit SideStream(Device device);
  ~SideStream();
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;
  Stream stream() const { return {stream_}; }

 private:
  cudaStream_t stream_ = nullptr;
};

// A mark in the device's current stream; wait() returns once the work before it is done.
class Event {
 public:
  explicit Event(Device device);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record();
  void wait() const;
  // What comes in the current stream from now on is done after what stood before the mark.
  void hold_back() const;
  // Milliseconds from `start` to this mark, both done.
  float since(const Event& start) const;

 private:
  Device device_;
  cudaEvent_t event_ = nullptr;
};

// Work recorded from the device's current stream, as a CUDA graph. Its kernels see the addresses
// that they had while recorded: blocks that the allocator still holds, or keeps in its cache.
class Graph {
 public:
  explicit Graph(Device device) : device_(device) {}
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // Records what `work` enqueues without running it. Throws Error where something in it cannot be
  // recorded (a copy from unpinned memory, a wait for the device); the stream is then as before.
  void record(const std::function<void()>& work);
  void launch();
  // False before record(), and once the allocator has given memory back to the system.
  bool good() const;

 private:
  void drop();
  Device device_;
  cudaGraphExec_t exec_ = nullptr;
  int64_t emptied_ = 0;
};

}  // namespace weft
