// torch's current stream, without a link to libtorch_cuda.
//
// aoti_torch_get_current_stream (libtorch_cpu) gives torch's own stream object, and turning that into a cudaStream_t
// takes torch_stream_native_handle, which came with torch 2.13. aoti_torch_get_current_cuda_stream gives the
// cudaStream_t in every torch, but lives in libtorch_cuda. Linking that would tie the library to CUDA builds of torch;
// in a process that has a CUDA tensor it is loaded already, so it is asked for by name.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "on_device.h"

namespace secateur::cuda {
namespace {

using CurrentStream = decltype(&aoti_torch_get_current_cuda_stream);

CurrentStream find_current_stream() {
  constexpr const char* kName = "aoti_torch_get_current_cuda_stream";
  if (void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD))
    return reinterpret_cast<CurrentStream>(dlsym(torch_cuda, kName));
  return reinterpret_cast<CurrentStream>(dlsym(RTLD_DEFAULT, kName));  // a torch linked into the program itself
}

}  // namespace

void* current_stream(int device) {
  static const CurrentStream current = find_current_stream();
  ops::check(current != nullptr,
             "secateur's CUDA library found no libtorch_cuda.so in this process: is this a CUDA build of torch?");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(current(device, &stream));
  return stream;
}

}  // namespace secateur::cuda
