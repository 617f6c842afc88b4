#include "runtime.h"

#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda_emulator.h"

namespace {

// Not of a thread, as the real ones are: thread_local variables are shared memory here (poison.cpp).
std::mutex mutex;
cudaError_t last_error = cudaSuccess;
cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
bool capturing = false;

std::string& calls() {
  static auto* text = new std::string;
  return *text;
}

std::string& failing() {
  static auto* name = new std::string;
  return *name;
}

cudaError_t failed(cudaError_t error) { return last_error = error; }

}  // namespace

cudaError_t cudaGetLastError() {
  std::lock_guard<std::mutex> lock(mutex);
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

// Of zeros, where the real one gives garbage: the checker holds kernels to what they have written.
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  std::lock_guard<std::mutex> lock(mutex);
  calls() += "cudaHostAlloc\n";
  if (failing() == "cudaHostAlloc") {
    failing().clear();
    return failed(cudaErrorMemoryAllocation);
  }
  if (capturing && capture_mode != cudaStreamCaptureModeRelaxed) return failed(cudaErrorStreamCaptureUnsupported);
  *memory = emulator::pinned_memory(bytes);
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::lock_guard<std::mutex> lock(mutex);
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}

namespace emulator {

void raise(cudaError_t error) { throw std::runtime_error("CUDA error: " + std::to_string(int(error))); }

}  // namespace emulator

// From Python.
extern "C" {

// The next call of a function fails.
__attribute__((visibility("default"))) void emulator_fail_next(const char* function) {
  std::lock_guard<std::mutex> lock(mutex);
  failing() = function;
}

// As if a stream were under capture, by a thread whose mode is the default; 1 if the mode is that now.
__attribute__((visibility("default"))) int emulator_capture(int on) {
  std::lock_guard<std::mutex> lock(mutex);
  capturing = on != 0;
  return capture_mode == cudaStreamCaptureModeGlobal;
}

// What allocates, a line a call.
__attribute__((visibility("default"))) const char* emulator_runtime_calls() {
  static std::string text;
  std::lock_guard<std::mutex> lock(mutex);
  text = calls();
  return text.c_str();
}
}
