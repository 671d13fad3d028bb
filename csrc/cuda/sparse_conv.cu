// Sparse convolution as a masked implicit GEMM: out[i] = sum over offsets k of features[table[k, i]] @ weight[k].
//
// A block makes a tile of output rows and channels. It walks the kernel offsets that one of its rows has and takes
// their channels as one long sum, 128 bytes of every row at a time: with few channels several offsets fill one such
// stage. Rows are gathered into shared memory by asynchronous copies, absent ones as zeros, some stages ahead of the
// tensor cores. The sum of an output row has one fixed order, so results do not change from run to run.
//
// Shared memory holds rows of 128 bytes whose 16-byte pieces are swapped around by the row's number: the eight rows
// that a matrix load reads at a time then lie in all 32 banks.
#include "kernels.h"
#include "sparse_conv.h"

namespace pcssl {
namespace {

constexpr int kStageRow = 128;                     // bytes of a row in a stage
constexpr int kPieces = kStageRow / kPiece;        // per row of a stage
constexpr int kWord = 32;                          // offsets of one word of a mask: their rows are known at a time
constexpr int kLoadRows = kConvThreads / kPieces;  // rows that a block copies at a time

__device__ __forceinline__ int place(int row, int piece) { return row * kStageRow + ((piece ^ (row & 7)) * kPiece); }

// The sums of a warp: M rows of `left` times N rows of `right`, on the tensor cores.
template <typename T, int M, int N>
struct WarpTile : WarpSums<T, M, N> {
  // Adds the products of one stage.
  __device__ __forceinline__ void multiply(const unsigned char* left, const unsigned char* right) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 0; step < kPieces; step += 2) {
      uint32_t a[M / 16][4], b[N / 16][4];
#pragma unroll
      for (int i = 0; i < M / 16; ++i) {
        load_matrices(a[i], left + place(16 * i + lane % 16, step + lane / 16));
        if constexpr (std::is_same_v<T, tf32>)  // the weights are rounded when they are packed
          for (uint32_t& number : a[i]) number = round_tf32(number);
      }
#pragma unroll
      for (int j = 0; j < N / 16; ++j)
        load_matrices(b[j], right + place(16 * j + lane / 16 * 8 + lane % 8, step + lane / 8 % 2));
      this->add(a, b);
    }
  }
};

// The same on the CUDA cores. Lanes are 8 rows by 4 pairs of columns, so their loads meet no bank twice.
template <int M, int N>
struct WarpTile<exact, M, N> {
  static constexpr int kRows = M / 8, kPairs = N / 8;

  __device__ __forceinline__ static int row(int i) { return 8 * i + threadIdx.x % 8; }
  __device__ __forceinline__ static int column(int j) { return 8 * j + threadIdx.x % 32 / 8 * 2; }
  __device__ __forceinline__ const float* pair(int i, int j) const { return sums[i] + 2 * j; }

  __device__ __forceinline__ void multiply(const unsigned char* left, const unsigned char* right) {
#pragma unroll 2
    for (int piece = 0; piece < kPieces; ++piece) {
      float4 a[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) a[i] = *reinterpret_cast<const float4*>(left + place(row(i), piece));
#pragma unroll
      for (int j = 0; j < 2 * kPairs; ++j) {
        const float4 b = *reinterpret_cast<const float4*>(right + place(column(j / 2) + j % 2, piece));
#pragma unroll
        for (int i = 0; i < kRows; ++i)
          sums[i][j] = fmaf(a[i].w, b.w, fmaf(a[i].z, b.z, fmaf(a[i].y, b.y, fmaf(a[i].x, b.x, sums[i][j]))));
      }
    }
  }

  float sums[kRows][2 * kPairs] = {};
};

struct Problem {
  const unsigned char* features;  // [N_in, pieces] pieces
  const unsigned char* weight;    // [K, C_out, pieces] pieces
  const float* bias;              // [C_out] or none
  const int32_t* rows;            // [K + 1, padded]: input rows, then the output row
  const uint32_t* masks;          // [padded / 32, ceil(K / 32)]
  void* out;                      // [N_out, C_out]
  int64_t padded;
  int offsets, pieces, channels, stages;
};

// What one thread copies: one piece of every kLoadRows-th row of a stage.
struct Cursor {
  int slot;   // of the offset among those that the tile has
  int piece;  // of the offset's channels

  __device__ __forceinline__ explicit Cursor(int pieces) {
    slot = threadIdx.x % kPieces / pieces;
    piece = threadIdx.x % kPieces % pieces;
  }
  __device__ __forceinline__ void advance(int pieces) {
    piece += kPieces % pieces;
    slot += kPieces / pieces;
    if (piece >= pieces) {
      piece -= pieces;
      ++slot;
    }
  }
};

template <typename T, int M, int N, int WarpM, int WarpN, int Blocks>
__global__ void __launch_bounds__(kConvThreads, Blocks) implicit_gemm(const Problem p) {
  constexpr int kStage = (M + N) * kStageRow;
  static_assert(M / WarpM * (N / WarpN) == kConvThreads / 32);
  PCSSL_DYNAMIC_SHARED(shared);
  __shared__ int32_t offset_of[kWord];
  int32_t* const row_of = reinterpret_cast<int32_t*>(shared + p.stages * kStage);  // [slot, M]

  // Tiles of the same rows are neighbours, so that the rows are still in the cache.
  const int column_tiles = (p.channels + N - 1) / N;
  const int64_t first = static_cast<int64_t>(blockIdx.x / column_tiles) * M;
  const int first_column = blockIdx.x % column_tiles * N;
  const int thread = threadIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp % (M / WarpM) * WarpM, warp_column = warp / (M / WarpM) * WarpN;
  const int words = (p.offsets + kWord - 1) / kWord;

  WarpTile<T, WarpM, WarpN> tile;

  for (int word = 0; word < words; ++word) {
    uint32_t mask = 0;
#pragma unroll
    for (int i = 0; i < M / 32; ++i) mask |= p.masks[(first / 32 + i) * words + word];
    if (!mask) continue;

    // Nobody reads row_of any more: after the last copies of the word before there was a barrier.
    for (int bit = warp; bit < kWord; bit += kConvThreads / 32)
      if (mask >> bit & 1) {
        const int slot = __popc(mask & ((1u << bit) - 1)), offset = word * kWord + bit;
        if (lane == 0) offset_of[slot] = offset;
        if (lane < M / 4) copy_async(row_of + slot * M + lane * 4, p.rows + offset * p.padded + first + lane * 4, true);
      }
    commit_copies();
    wait_copies(0);
    __syncthreads();  // the rows are here for all, and all are done with the stages of the word before

    const int slots = __popc(mask), count = (slots * p.pieces + kPieces - 1) / kPieces;
    Cursor cursor(p.pieces);
    auto copy = [&](int stage) {
      const int row = thread / kPieces, to = stage * kStage + place(row, thread % kPieces);
      const bool there = cursor.slot < slots;
      const int32_t* from = row_of + cursor.slot * M + row;
#pragma unroll
      for (int i = 0; i < M / kLoadRows; ++i) {
        const int32_t source = there ? from[i * kLoadRows] : -1;
        const int64_t at = source >= 0 ? static_cast<int64_t>(source) * p.pieces + cursor.piece : 0;
        copy_async(shared + to + i * kLoadRows * kStageRow, p.features + at * kPiece, source >= 0);
      }
      const int column = first_column + row;
      const int64_t weight = there ? static_cast<int64_t>(offset_of[cursor.slot]) * p.channels : 0;
#pragma unroll
      for (int i = 0; i < N / kLoadRows; ++i) {
        const bool inside = there && column + i * kLoadRows < p.channels;
        const int64_t at = inside ? (weight + column + i * kLoadRows) * p.pieces + cursor.piece : 0;
        copy_async(shared + to + (M + i * kLoadRows) * kStageRow, p.weight + at * kPiece, inside);
      }
      cursor.advance(p.pieces);
    };

    for (int stage = 0; stage < p.stages - 1; ++stage) {
      if (stage < count) copy(stage);
      commit_copies();
    }
    int stage = 0, next = p.stages - 1;
    for (int i = 0; i < count; ++i) {
      wait_copies(p.stages - 2);
      __syncthreads();  // the stage is here for all, and all are done with the one before
      if (i + p.stages - 1 < count) copy(next);
      commit_copies();
      const unsigned char* left = shared + stage * kStage;
      tile.multiply(left + warp_row * kStageRow, left + (M + warp_column) * kStageRow);
      next = stage;
      stage = stage + 1 == p.stages ? 0 : stage + 1;
    }
  }

  int32_t to[tile.kRows];
#pragma unroll
  for (int i = 0; i < tile.kRows; ++i) to[i] = p.rows[p.offsets * p.padded + first + warp_row + tile.row(i)];
  Stored<T>* const out = static_cast<Stored<T>*>(p.out);
#pragma unroll
  for (int j = 0; j < tile.kPairs; ++j) {
    const int column = first_column + warp_column + tile.column(j);
    if (column >= p.channels) continue;
    const bool has_y = column + 1 < p.channels;
    const float x = p.bias ? p.bias[column] : 0, y = p.bias && has_y ? p.bias[column + 1] : 0;
#pragma unroll
    for (int i = 0; i < tile.kRows; ++i)
      if (to[i] >= 0)
        store_pair(out + static_cast<int64_t>(to[i]) * p.channels + column, tile.pair(i, j)[0] + x,
                   tile.pair(i, j)[1] + y, has_y, p.channels % 2 == 0);
  }
}

template <typename T, int M, int N, int WarpM, int WarpN, int Blocks>
int run(Problem problem, const Device& device, void* stream) {
  constexpr int kStage = (M + N) * kStageRow;
  const int rows = (problem.offsets < kWord ? problem.offsets : kWord) * M * static_cast<int>(sizeof(int32_t));
  problem.stages = stages_for(device, Blocks, kStage, rows + kWord * static_cast<int>(sizeof(int32_t)));
  const int bytes = problem.stages * kStage + rows;
  const int64_t blocks = problem.padded / M * ((problem.channels + N - 1) / N);
  constexpr auto kernel = implicit_gemm<T, M, N, WarpM, WarpN, Blocks>;
  PCSSL_ALLOW_SHARED(kernel, bytes);
  PCSSL_LAUNCH(kernel, static_cast<unsigned>(blocks), kConvThreads, bytes, stream, problem);
  return launch_error();
}

// Tiles of 128 rows where they fill the GPU twice and its multiprocessors hold them (80, 90, 100; not 86, 89, 120).
template <typename T>
int choose(const Problem& problem, void* stream) {
  const Device device = current_device();
  if constexpr (std::is_same_v<T, exact>) return run<T, 64, 64, 32, 32, 3>(problem, device, stream);
  else {
    const int columns = tile_channels(problem.channels);
    const int64_t tiles = problem.padded / 128 * ((problem.channels + columns - 1) / columns);
    if (columns == 32) return run<T, 128, 32, 32, 32, 3>(problem, device, stream);
    if (tiles < 2 * device.processors || device.shared_per_block < (128 << 10))
      return run<T, 64, 64, 32, 32, 3>(problem, device, stream);
    if (columns == 64) return run<T, 128, 64, 64, 32, 2>(problem, device, stream);
    if (columns == 96) return run<T, 128, 96, 64, 48, 2>(problem, device, stream);
    return run<T, 128, 128, 64, 64, 2>(problem, device, stream);
  }
}

__device__ __forceinline__ float load_as_float(const void* from, int64_t i, int element) {
  if (element == kFloat32) return static_cast<const float*>(from)[i];
  if (element == kBfloat16) return to_float(static_cast<const bf16*>(from)[i]);
  return to_float(static_cast<const fp16*>(from)[i]);
}

// Weights at any strides to [K, C_out, width], zeros after C_in, as they are multiplied. Tiles of 32 x 32 pass
// through shared memory, so that reads and writes both run along memory.
__global__ void pack_weight(const void* __restrict__ weight, int element, int64_t step_k, int64_t step_in,
                            int64_t step_out, int in, int out, int width, int product, bool flip,
                            void* __restrict__ packed) {
  __shared__ float tile[32][33];
  const int x = threadIdx.x % 32, first_in = blockIdx.x * 32, first_out = blockIdx.y * 32;
  const int64_t from = step_k * (flip ? gridDim.z - 1 - blockIdx.z : blockIdx.z);
  const bool out_runs = step_out < step_in;
  for (int y = threadIdx.x / 32; y < 32; y += kThreads / 32) {
    const int i = out_runs ? y : x, o = out_runs ? x : y;
    const bool inside = first_in + i < in && first_out + o < out;
    tile[o][i] = inside ? load_as_float(weight, from + (first_in + i) * step_in + (first_out + o) * step_out, element)
                        : 0.0f;
  }
  __syncthreads();
  for (int y = threadIdx.x / 32; y < 32; y += kThreads / 32) {
    if (first_out + y >= out || first_in + x >= width) continue;
    const int64_t at = (static_cast<int64_t>(blockIdx.z) * out + first_out + y) * width + first_in + x;
    const float value = tile[y][x];
    if (product == kExact) static_cast<float*>(packed)[at] = value;
    else if (product == kTf32) static_cast<uint32_t*>(packed)[at] = round_tf32(__float_as_uint(value));
    else if (product == kBf16) static_cast<bf16*>(packed)[at] = from_float<bf16>(value);
    else static_cast<fp16*>(packed)[at] = from_float<fp16>(value);
  }
}

// Rows of `words` 16-bit words to rows of `wide`, with zeros.
__global__ void pad_rows(const uint16_t* __restrict__ from, int64_t rows, int words, int wide,
                         uint16_t* __restrict__ to) {
  for (int64_t i = first_item(); i < rows * wide; i += item_step()) {
    const int64_t row = i / wide;
    const int word = static_cast<int>(i - row * wide);
    to[i] = word < words ? from[row * words + word] : 0;
  }
}

}  // namespace
}  // namespace pcssl

int pcssl_cuda_pack_weight(const void* weight, int element, int64_t step_k, int64_t step_in, int64_t step_out,
                           int offsets, int in, int out, int width, int product, bool flip, void* packed,
                           void* stream) {
  using namespace pcssl;
  const dim3 grid((width + 31) / 32, (out + 31) / 32, offsets);
  PCSSL_LAUNCH(pack_weight, grid, kThreads, 0, stream, weight, element, step_k, step_in, step_out, in, out, width,
               product, flip, packed);
  return launch_error();
}

int pcssl_cuda_pad_rows(const void* from, int64_t rows, int bytes, int padded_bytes, void* to, void* stream) {
  using namespace pcssl;
  PCSSL_LAUNCH(pad_rows, blocks_for(rows * padded_bytes / 2), kThreads, 0, stream, static_cast<const uint16_t*>(from),
               rows, bytes / 2, padded_bytes / 2, static_cast<uint16_t*>(to));
  return launch_error();
}

int pcssl_cuda_implicit_gemm(const void* features, const void* weight, const float* bias, const int32_t* rows,
                             const uint32_t* masks, int64_t padded, int offsets, int pieces, int channels, int product,
                             void* out, void* stream) {
  using namespace pcssl;
  const Problem problem{static_cast<const unsigned char*>(features), static_cast<const unsigned char*>(weight), bias,
                        rows, masks, out, padded, offsets, pieces, channels, 0};
  if (product == kExact) return choose<exact>(problem, stream);
  if (product == kTf32) return choose<tf32>(problem, stream);
  if (product == kBf16) return choose<bf16>(problem, stream);
  return choose<fp16>(problem, stream);
}
