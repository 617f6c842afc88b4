// Runs an AOTInductor package of a net on ste_ops, in a process without Python:
//
//     run_package ste_ops/_C.abi3.so net.pt2 inputs.pt outputs.pt
//
// inputs.pt is a list of tensors that torch.save wrote, each a batch; outputs.pt is the tuple of what the net makes
// of them, for torch.load. docs/export.md shows how to build it.
#include <ATen/core/ivalue.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// The operators of ste_ops register with torch as their library is loaded; it stays for as long as the process.
void load_operators(const std::string& library) {
  if (dlopen(library.c_str(), RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());
}

std::vector<char> bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void run(const std::string& package, const std::string& inputs, const std::string& outputs) {
  torch::inductor::AOTIModelPackageLoader net(package);
  std::vector<c10::IValue> made;
  const c10::IValue batches = torch::jit::pickle_load(bytes_of(inputs));
  for (const c10::IValue& batch : batches.toListRef()) made.emplace_back(net.run({batch.toTensor()}).at(0));
  const std::vector<char> bytes = torch::jit::pickle_save(c10::ivalue::Tuple::create(made));
  std::ofstream(outputs, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) {
    std::cerr << "usage: run_package LIBRARY PACKAGE INPUTS OUTPUTS\n";
    return 2;
  }
  try {
    load_operators(arguments[1]);
    run(arguments[2], arguments[3], arguments[4]);
  } catch (const std::exception& error) {
    std::cerr << "run_package: " << error.what() << '\n';
    return 1;
  }
}
