#include "core/groups.h"
#include "native.h"

namespace ste_ops {
namespace {

Groups groups_of(const std::string& kind, int64_t numel, int64_t size, int64_t stride) {
  if (kind == "whole") return whole_tensor(numel);
  return kind == "tokens" ? tokens(numel, size, stride) : channels(numel, size, stride);
}

// For each element the group it belongs to, and (group, part) for each element as the tasks of a partition visit them;
// elements that no task visits, or that two do, show as -1.
py::tuple walk_groups(
    const std::string& kind, int64_t numel, int64_t size, int64_t stride, int64_t span, int64_t block) {
  const Groups groups = groups_of(kind, numel, size, stride);
  const Partition partition(groups, span, block);
  std::vector<int64_t> group(numel), visited(numel, -1), result(numel, -1), lengths;
  for (int64_t i = 0; i < numel; ++i) group[i] = groups.of(i);
  for (int64_t number = 0; number < partition.tasks(); ++number) {
    const ReduceTask task = partition.task(number);
    int64_t elements = 0;
    for (int64_t outer = 0; outer < task.outers; ++outer) {
      for (int64_t at = 0; at < task.length; at += task.width) {
        for (int64_t lane = 0; lane < task.width && at + lane < task.length; ++lane, ++elements) {
          const int64_t i = task.begin + outer * task.stride + at + lane;
          const int64_t column = task.first + lane / groups.inner % groups.size;
          if (i < 0 || i >= numel) throw std::out_of_range("a task leaves the memory");
          visited[i] = visited[i] == -1 ? task.batch * groups.size + column : -2;
          result[i] = (task.batch * partition.parts() + task.part) * groups.size + column;
        }
      }
    }
    lengths.push_back(elements);
  }
  return py::make_tuple(group, visited, result, lengths, groups.count(), partition.results());
}

// The groups that a walk from element `start` on comes through, `count` of them.
std::vector<int64_t> groups_from(
    const std::string& kind, int64_t numel, int64_t size, int64_t stride, int64_t start, int64_t count) {
  const Groups groups = groups_of(kind, numel, size, stride);
  std::vector<int64_t> walked;
  GroupWalk walk(groups, start);
  for (int64_t i = 0; i < count; ++i, walk.next(groups)) walked.push_back(walk.group);
  return walked;
}

const Bindings quantize("quantize", [](py::module_& m) {
  m.def("walk_groups", &walk_groups);
  m.def("groups_from", &groups_from);
  m.def("divided", &divided);
});

}  // namespace
}  // namespace ste_ops
