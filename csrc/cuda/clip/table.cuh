// Tables of many items in a kernel's parameters: no copy to the device, nothing to keep alive, and a CUDA graph
// captures them with the launch.
//
//   template <int N>
//   struct RowTable : TableOf<N> {
//     float* row[N];
//     static int64_t blocks_of(const Row& row) { return 1; }
//     void set(int i, const Row& row) { this->row[i] = row.data; }
//   };
//   struct LaunchRows {
//     const Launcher& launch;
//     template <int N>
//     void operator()(const RowTable<N>& table, TablePlace at) const {
//       launch(rows_kernel<N>, at.blocks, 256, table);  // whose parameter is a const __grid_constant__ RowTable<N>
//     }
//   };
//   for_each_table<RowTable>(rows.data(), rows.size(), LaunchRows{launch});
#pragma once

#include "cuda/launch.cuh"

namespace ste_ops {

// Kernel parameters may take 32,764 bytes since CUDA 12.1 and 4,096 before it. The last 128 are for those beside a
// table.
#if defined(CUDART_VERSION) && CUDART_VERSION >= 12010
constexpr int kTableBytes = 32764 - 128;
#else
constexpr int kTableBytes = 4096 - 128;
#endif
// A launch copies every byte of its parameters, so a short list goes into a table of these.
constexpr int kSmallTableBytes = 3072;

template <int N>
struct TableOf {
  uint32_t first_block[N + 1];  // of the launch, for each item
  int count;
};

// How many items a table of so many bytes holds: in eights, which leave no gaps between the arrays.
template <template <int> class Table>
constexpr int items_in(int bytes) {
  constexpr int eight = sizeof(Table<8>), more = sizeof(Table<16>) - eight;
  return 8 + (bytes - eight) / more * 8;
}

// Where the items and the blocks of a table stand among those of all tables.
struct TablePlace {
  int64_t blocks;
  int64_t first_block;
  int64_t first_item;
};

// Fills one table and calls use(table, place). Returns the place after it. A grid has at most 2^31 - 1 blocks: what
// goes beyond is for the next table.
template <template <int> class Table, int N, class Item, class Use>
TablePlace use_table(const Item* items, int64_t count, TablePlace at, const Use& use) {
  static_assert(sizeof(Table<N>) <= kTableBytes, "room for the other parameters");
  Table<N> table;
  table.count = 0;
  table.first_block[0] = 0;
  for (at.blocks = 0; table.count < N && at.first_item + table.count < count; ++table.count) {
    const Item& item = items[at.first_item + table.count];
    const int64_t more = Table<N>::blocks_of(item);
    if (table.count > 0 && at.blocks + more > INT32_MAX) break;
    table.set(table.count, item);
    at.blocks += more;
    table.first_block[table.count + 1] = uint32_t(at.blocks);
  }
  use(table, at);
  return {0, at.first_block + at.blocks, at.first_item + table.count};
}

template <template <int> class Table, class Item, class Use>
void for_each_table(const Item* items, size_t count, const Use& use) {
  constexpr int kSmall = items_in<Table>(kSmallTableBytes), kLarge = items_in<Table>(kTableBytes);
  const int64_t all = int64_t(count);
  for (TablePlace at{}; at.first_item < all;) {
    const bool fits = all - at.first_item <= kSmall;
    at = fits ? use_table<Table, kSmall>(items, all, at, use) : use_table<Table, kLarge>(items, all, at, use);
  }
}

// The item that this block works on.
template <class Table>
__device__ int find_item(const Table& table) {
  int low = 0, high = table.count;
  while (high - low > 1) {
    int middle = (low + high) / 2;
    (table.first_block[middle] <= blockIdx.x ? low : high) = middle;
  }
  return low;
}

}  // namespace ste_ops
