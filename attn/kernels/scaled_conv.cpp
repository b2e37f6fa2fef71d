// A convolution whose filters are scaled per (sample, filter, tap), and its gradients: scaled_conv.py in NHWC on the CPU.
// Maps and filters are float32, or bfloat16 where the CPU multiplies pairs of it; sums are float32 in both.
//
// No sample's filters are ever stored. Per tap it is a matrix product over channels, of pixels and of filters that all samples
// share; what scales a tap is applied to the product (forward, gradient of the filters) or to a pixel just before it is read
// (gradient of the input). Pairs of pixels that a tap connects are listed once per call, so padding costs nothing.
// Work is shared out by shapes alone, so that results do not depend on the number of threads.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define UNROLLED _Pragma("GCC unroll 8")
#define INLINED __attribute__((always_inline))

namespace {

using Index = int64_t;

// Sixteen floats: compilers with GCC's vector extension split or map them to whatever the CPU has.
using Vector = float __attribute__((vector_size(64)));
constexpr Index kLanes = 16;

// A tile of products: kRows pixels (or filters) by up to kVectors vectors of channels, sized to stay in registers.
constexpr int kRows = 6;
#ifdef __AVX512F__
constexpr int kVectors = 4;
#else
constexpr int kVectors = 1;
#endif
constexpr Index kWidth = kVectors * kLanes;

constexpr Index kPixels = 128;   // pixels whose sums over the taps are kept near the processor
constexpr Index kFilters = 48;   // filters whose gradient is, beside kWidth input channels
constexpr Index kPairs = 256;    // pairs of pixels after which a gradient of filters is added up

// A lane of a product multiplies so many values of a type at once, which lie one after the other in memory.
template <class T>
constexpr Index kAtOnce = sizeof(float) / sizeof(T);

// Sixteen lanes as they lie in memory.
INLINED inline Vector lanes(const void* x) {
  Vector value;
  std::memcpy(&value, x, sizeof value);
  return value;
}

INLINED inline Vector load(const float* x) { return lanes(x); }

INLINED inline void store(float* target, Vector x) { std::memcpy(target, &x, sizeof x); }

// sum += the lanes of w times what one lane of x holds.
INLINED inline void add_multiple(Vector& sum, Vector w, const float* x) { sum += w * *x; }

// Lanes of `count` channels; those of narrower types hold a second row of channels beside the first, of zeros if it is null.
INLINED inline void interleave(float* target, const float* first, const float*, Index count) {
  std::memcpy(target, first, count * sizeof(float));
}

#ifdef __AVX512BF16__
struct Bf16 {
  uint16_t bits;
};

INLINED inline __m512i wide_bits(const Bf16* x) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}

INLINED inline Vector load(const Bf16* x) { return (Vector)_mm512_slli_epi32(wide_bits(x), 16); }

INLINED inline void store(Bf16* target, Vector x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), (__m256i)_mm512_cvtneps_pbh((__m512)x));
}

INLINED inline void add_multiple(Vector& sum, Vector w, const Bf16* x) {
  int32_t both;
  std::memcpy(&both, x, sizeof both);
  sum = (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(both));
}

INLINED inline void interleave(Bf16* target, const Bf16* first, const Bf16* second, Index count) {
  for (Index c = 0; c < count; c += kLanes) {
    __m512i both = wide_bits(first + c);
    if (second) both = _mm512_or_si512(both, _mm512_slli_epi32(wide_bits(second + c), 16));
    _mm512_storeu_si512(target + 2 * c, both);
  }
}
#endif

inline float sum(Vector x) {
  using Half = float __attribute__((vector_size(32)));
  using Quarter = float __attribute__((vector_size(16)));
  Half halves[2];
  std::memcpy(halves, &x, sizeof x);
  const Half h = halves[0] + halves[1];
  Quarter quarters[2];
  std::memcpy(quarters, &h, sizeof h);
  const Quarter q = quarters[0] + quarters[1];
  return (q[0] + q[2]) + (q[1] + q[3]);
}

struct Shape {
  Index n, groups, c1, c2;  // channels of one group
  Index h, w, rows, columns;  // sides of the input and of the output
  Index kernel[2], stride[2], padding[2], dilation[2];
  int threads;
  Index taps() const { return kernel[0] * kernel[1]; }
  Index wide1() const { return groups * c1; }
  Index wide2() const { return groups * c2; }
};

// The pairs of a sample's pixels that a tap connects, in ascending order of both.
struct Pairs {
  std::vector<int32_t> input, output;
  // Of the first pair at or after a pixel.
  std::vector<int32_t> from_input, from_output;
};

std::vector<int32_t> starts(const std::vector<int32_t>& pixels, Index count) {
  std::vector<int32_t> first(count + 1);
  Index k = 0;
  for (Index p = 0; p <= count; ++p) {
    while (k < static_cast<Index>(pixels.size()) && pixels[k] < p) ++k;
    first[p] = static_cast<int32_t>(k);
  }
  return first;
}

std::vector<Pairs> connected(const Shape& s) {
  std::vector<Pairs> found(s.taps());
  for (Index i = 0; i < s.kernel[0]; ++i)
    for (Index j = 0; j < s.kernel[1]; ++j) {
      Pairs& pairs = found[i * s.kernel[1] + j];
      for (Index row = 0; row < s.rows; ++row) {
        const Index y = row * s.stride[0] + i * s.dilation[0] - s.padding[0];
        if (y < 0 || y >= s.h) continue;
        for (Index column = 0; column < s.columns; ++column) {
          const Index x = column * s.stride[1] + j * s.dilation[1] - s.padding[1];
          if (x < 0 || x >= s.w) continue;
          pairs.input.push_back(static_cast<int32_t>(y * s.w + x));
          pairs.output.push_back(static_cast<int32_t>(row * s.columns + column));
        }
      }
      pairs.from_input = starts(pairs.input, s.h * s.w);
      pairs.from_output = starts(pairs.output, s.rows * s.columns);
    }
  return found;
}

// sums[r][v] += sum over `depth` of rows[r][k] * weights[k][v]
template <class T, int R, int V>
INLINED inline void multiply(const T* const* rows, const T* weights, Index depth, Vector (&sums)[R][V]) {
  const T* row[R];
  UNROLLED for (int r = 0; r < R; ++r) row[r] = rows[r];
  for (Index k = 0; k < depth; k += kAtOnce<T>) {
    Vector w[V];
    UNROLLED for (int v = 0; v < V; ++v) w[v] = lanes(weights + k * V * kLanes + v * kLanes * kAtOnce<T>);
    UNROLLED for (int r = 0; r < R; ++r)
      UNROLLED for (int v = 0; v < V; ++v) add_multiple(sums[r][v], w[v], row[r] + k);
  }
}

// targets[r] += scales[r] * (rows[r] times weights); scales null: 1.
template <int R, int V, class T>
void add_product(const T* const* rows, const T* weights, Index depth, const float* const* scales, float* const* targets) {
  Vector sums[R][V] = {};
  multiply(rows, weights, depth, sums);
  UNROLLED for (int r = 0; r < R; ++r)
    UNROLLED for (int v = 0; v < V; ++v) {
      float* target = targets[r] + v * kLanes;
      store(target, load(target) + (scales ? load(scales[r] + v * kLanes) * sums[r][v] : sums[r][v]));
    }
}

template <int V, class T>
void add_products(int count, const T* const* rows, const T* weights, Index depth, const float* const* scales,
                  float* const* targets) {
  switch (count) {
    case 1: return add_product<1, V>(rows, weights, depth, scales, targets);
    case 2: return add_product<2, V>(rows, weights, depth, scales, targets);
    case 3: return add_product<3, V>(rows, weights, depth, scales, targets);
    case 4: return add_product<4, V>(rows, weights, depth, scales, targets);
    case 5: return add_product<5, V>(rows, weights, depth, scales, targets);
    default: return add_product<kRows, V>(rows, weights, depth, scales, targets);
  }
}

// Calls `run` with a number of vectors as a constant.
template <class Run>
void with_vectors(Index count, const Run& run) {
  if constexpr (kVectors > 1) {
    if (count == 2) return run(std::integral_constant<int, 2>());
    if (count == 3) return run(std::integral_constant<int, 3>());
    if (count == 4) return run(std::integral_constant<int, 4>());
  }
  run(std::integral_constant<int, 1>());
}

Index blocks_of(Index channels) { return (channels + kWidth - 1) / kWidth; }

// [group][block][tap][depth / kAtOnce][lanes of the block][kAtOnce] from filters [C2][tap][C1]: a product's weights lie as it
// reads them. The lanes are filters and the depth input channels, or for the input's gradient the other way round.
template <class T>
void pack(const Shape& s, const T* weight, bool of_filters, T* all) {
  const Index channels = of_filters ? s.c2 : s.c1, depth = of_filters ? s.c1 : s.c2, taps = s.taps();
  const Index filter = taps * s.c1, blocks = blocks_of(channels);
#pragma omp parallel for num_threads(s.threads) schedule(static)
  for (Index item = 0; item < s.groups * blocks * taps; ++item) {
    const Index tap = item % taps, group = item / taps / blocks, first = item / taps % blocks * kWidth;
    const Index width = std::min(kWidth, channels - first);
    T* target = all + (group * channels + first) * taps * depth + tap * depth * width;
    const T* source = weight + group * s.c2 * filter + tap * s.c1;
    if (of_filters) {
      source += first * filter;
      for (Index k = 0; k < depth; k += kLanes)  // a line of the cache at a time
        for (Index lane = 0; lane < width; ++lane)
          UNROLLED for (Index j = 0; j < kLanes; j += kAtOnce<T>)
            std::memcpy(target + (k + j) * width + lane * kAtOnce<T>, source + lane * filter + k + j, sizeof(float));
    } else {
      source += first;
      for (Index k = 0; k < depth; k += kAtOnce<T>)
        interleave(target + k * width, source + k * filter, source + (k + kAtOnce<T> - 1) * filter, width);
    }
  }
}

// Sums [count][width] as a map's channels.
template <class T>
void store_pixels(const float* sums, Index count, Index width, T* target, Index stride) {
  for (Index k = 0; k < count; ++k)
    for (Index c = 0; c < width; c += kLanes) store(target + k * stride + c, load(sums + k * width + c));
}

// y [N, pixels, C2] from x [N, pixels, C1]; scale [N, tap, C2]; scratch as large as weight.
template <class T>
void forward(const Shape& s, const T* x, const T* weight, const float* scale, T* y, T* scratch) {
  const std::vector<Pairs> pairs = connected(s);
  pack(s, weight, true, scratch);
  const Index inputs = s.h * s.w, outputs = s.rows * s.columns, taps = s.taps(), total = s.n * outputs;
  const Index chunks = (total + kPixels - 1) / kPixels, blocks = blocks_of(s.c2);
#pragma omp parallel for num_threads(s.threads) schedule(static)
  for (Index item = 0; item < s.groups * blocks * chunks; ++item) {
    const Index chunk = item % chunks, group = item / chunks / blocks, first = item / chunks % blocks * kWidth;
    const Index width = std::min(kWidth, s.c2 - first), begin = chunk * kPixels, end = std::min(total, begin + kPixels);
    const T* block = scratch + (group * s.c2 + first) * taps * s.c1;
    float sums[kPixels * kWidth];
    std::fill_n(sums, (end - begin) * width, 0.f);
    with_vectors(width / kLanes, [&](auto vectors) {
      for (Index tap = 0; tap < taps; ++tap) {
        const Pairs& p = pairs[tap];
        const T* rows[kRows];
        const float* scales[kRows];
        float* targets[kRows];
        int count = 0;
        const auto flush = [&] {
          add_products<vectors()>(count, rows, block + tap * s.c1 * width, s.c1, scales, targets);
          count = 0;
        };
        for (Index n = begin / outputs; n * outputs < end; ++n) {
          const Index base = n * outputs;
          const Index last = p.from_output[std::min(outputs, end - base)];
          const float* factors = scale + (n * taps + tap) * s.wide2() + group * s.c2 + first;
          for (Index k = p.from_output[std::max<Index>(0, begin - base)]; k < last; ++k) {
            rows[count] = x + (n * inputs + p.input[k]) * s.wide1() + group * s.c1;
            scales[count] = factors;
            targets[count] = sums + (base + p.output[k] - begin) * width;
            if (++count == kRows) flush();
          }
        }
        if (count) flush();
      }
    });
    store_pixels(sums, end - begin, width, y + begin * s.wide2() + group * s.c2 + first, s.wide2());
  }
}

// dx from dy: the pixels of dy are scaled as they are read.
template <class T>
void input_gradient(const Shape& s, const std::vector<Pairs>& pairs, const T* dy, const T* weight, const float* scale, T* dx,
                    T* scratch) {
  pack(s, weight, false, scratch);
  const Index inputs = s.h * s.w, outputs = s.rows * s.columns, taps = s.taps(), total = s.n * inputs;
  const Index chunks = (total + kPixels - 1) / kPixels, blocks = blocks_of(s.c1);
#pragma omp parallel for num_threads(s.threads) schedule(static)
  for (Index item = 0; item < s.groups * blocks * chunks; ++item) {
    const Index chunk = item % chunks, group = item / chunks / blocks, first = item / chunks % blocks * kWidth;
    const Index width = std::min(kWidth, s.c1 - first), begin = chunk * kPixels, end = std::min(total, begin + kPixels);
    const T* block = scratch + (group * s.c1 + first) * taps * s.c2;
    float sums[kPixels * kWidth];
    std::vector<T> scaled(kRows * s.c2);
    const T* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = scaled.data() + r * s.c2;
    std::fill_n(sums, (end - begin) * width, 0.f);
    with_vectors(width / kLanes, [&](auto vectors) {
      for (Index tap = 0; tap < taps; ++tap) {
        const Pairs& p = pairs[tap];
        float* targets[kRows];
        int count = 0;
        const auto flush = [&] {
          add_products<vectors()>(count, rows, block + tap * s.c2 * width, s.c2, nullptr, targets);
          count = 0;
        };
        for (Index n = begin / inputs; n * inputs < end; ++n) {
          const Index base = n * inputs;
          const Index last = p.from_input[std::min(inputs, end - base)];
          const float* factors = scale + (n * taps + tap) * s.wide2() + group * s.c2;
          for (Index k = p.from_input[std::max<Index>(0, begin - base)]; k < last; ++k) {
            const T* source = dy + (n * outputs + p.output[k]) * s.wide2() + group * s.c2;
            T* row = scaled.data() + count * s.c2;
            for (Index c = 0; c < s.c2; c += kLanes) store(row + c, load(source + c) * load(factors + c));
            targets[count] = sums + (base + p.input[k] - begin) * width;
            if (++count == kRows) flush();
          }
        }
        if (count) flush();
      }
    });
    store_pixels(sums, end - begin, width, dx + begin * s.wide1() + group * s.c1 + first, s.wide1());
  }
}

// The gradient of R filters of a tap for some steps of pixels of one sample, added to the sum over samples and to the scale's
// gradient. A step is kAtOnce pixels of dy, from filter `first` on, and of x.
template <int R, int V, class T>
void add_outer(const T* const* dy, Index first, const T* const* x, Index steps, const float* weight, const float* scale,
               float* dweight, float* dscale) {
  Vector sums[R][V] = {};
  for (Index k = 0; k < steps; ++k) {
    const T *g = dy[k] + first * kAtOnce<T>, *from = x[k];
    Vector value[V];
    UNROLLED for (int v = 0; v < V; ++v) value[v] = lanes(from + v * kLanes * kAtOnce<T>);
    UNROLLED for (int r = 0; r < R; ++r)
      UNROLLED for (int v = 0; v < V; ++v) add_multiple(sums[r][v], value[v], g + r * kAtOnce<T>);
  }
  UNROLLED for (int r = 0; r < R; ++r) {
    Vector dot = {};
    const float factor = scale[r];
    UNROLLED for (int v = 0; v < V; ++v) {
      const Index at = (r * V + v) * kLanes;
      dot += load(weight + at) * sums[r][v];
      store(dweight + at, load(dweight + at) + sums[r][v] * factor);
    }
    dscale[r] += sum(dot);
  }
}

template <int V, class... Arguments>
void add_outers(Index filters, Arguments... arguments) {
  switch (filters) {
    case 1: return add_outer<1, V>(arguments...);
    case 2: return add_outer<2, V>(arguments...);
    case 3: return add_outer<3, V>(arguments...);
    case 4: return add_outer<4, V>(arguments...);
    case 5: return add_outer<5, V>(arguments...);
    default: return add_outer<kRows, V>(arguments...);
  }
}

// Pixels of a map in the order of a list, kAtOnce of them a step: float32 in place, narrower types as interleaved copies of
// `width` channels.
template <class T, Index Width>
struct Steps {
  const T* at[kPairs / kAtOnce<T>];
  T copies[kAtOnce<T> == 1 ? 1 : kPairs * Width];

  // Returns the number of steps.
  Index list(const T* map, Index stride, const int32_t* pixels, Index count, Index width) {
    const Index steps = (count + kAtOnce<T> - 1) / kAtOnce<T>;
    for (Index k = 0; k < steps; ++k) {
      const T* first = map + pixels[k * kAtOnce<T>] * stride;
      if constexpr (kAtOnce<T> == 1) {
        at[k] = first;
      } else {
        T* copy = copies + k * width * kAtOnce<T>;
        interleave(copy, first, 2 * k + 1 < count ? map + pixels[2 * k + 1] * stride : nullptr, width);
        at[k] = copy;
      }
    }
    return steps;
  }
};

// dweight [C2][tap][C1] and dscale [N, tap, C2].
template <class T>
void filter_gradients(const Shape& s, const std::vector<Pairs>& pairs, const T* dy, const T* x, const T* weight,
                      const float* scale, float* dweight, float* dscale) {
  const Index inputs = s.h * s.w, outputs = s.rows * s.columns, taps = s.taps();
  const Index across = blocks_of(s.c1), down = (s.c2 + kFilters - 1) / kFilters, wide2 = s.wide2();
  std::vector<float> partial(across * s.n * taps * wide2);  // dscale, of each block of input channels
#pragma omp parallel for num_threads(s.threads) schedule(static)
  for (Index item = 0; item < s.groups * taps * across * down; ++item) {
    const Index filter = item % down * kFilters, first = item / down % across * kWidth;
    const Index tap = item / down / across % taps, group = item / down / across / taps;
    const Index width = std::min(kWidth, s.c1 - first), filters = std::min(kFilters, s.c2 - filter);
    const Pairs& p = pairs[tap];
    const Index count = static_cast<Index>(p.input.size());
    float own[kFilters * kWidth], sums[kFilters * kWidth];
    std::fill_n(sums, filters * width, 0.f);
    const Index at = ((group * s.c2 + filter) * taps + tap) * s.c1 + first;
    Steps<T, kWidth> of_x;
    Steps<T, kFilters> of_dy;
    for (Index f = 0; f < filters; ++f)
      for (Index c = 0; c < width; c += kLanes) store(own + f * width + c, load(weight + at + f * taps * s.c1 + c));
    with_vectors(width / kLanes, [&](auto vectors) {
      for (Index n = 0; n < s.n; ++n) {
        const Index row = (n * taps + tap) * wide2 + group * s.c2 + filter;
        float* dots = partial.data() + first / kWidth * s.n * taps * wide2 + row;
        const T* from = x + n * inputs * s.wide1() + group * s.c1 + first;
        const T* g = dy + n * outputs * wide2 + group * s.c2 + filter;
        for (Index k = 0; k < count; k += kPairs) {
          const Index pixels = std::min(kPairs, count - k);
          of_x.list(from, s.wide1(), p.input.data() + k, pixels, width);
          const Index steps = of_dy.list(g, wide2, p.output.data() + k, pixels, filters);
          for (Index f = 0; f < filters; f += kRows)
            add_outers<vectors()>(std::min<Index>(kRows, filters - f), of_dy.at, f, of_x.at, steps, own + f * width,
                                  scale + row + f, sums + f * width, dots + f);
        }
      }
    });
    for (Index f = 0; f < filters; ++f) std::memcpy(dweight + at + f * taps * s.c1, sums + f * width, width * sizeof(float));
  }
  const Index size = s.n * taps * wide2;
  for (Index k = 0; k < size; ++k) {
    double total = 0;
    for (Index block = 0; block < across; ++block) total += partial[block * size + k];
    dscale[k] = static_cast<float>(total);
  }
}

// From N, groups, C1 and C2 of one group, H, W, output rows and columns, kernel, stride, padding and dilation by two.
Shape shape_of(const Index* sizes, int threads) {
  Shape s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], {}, {}, {}, {}, threads};
  for (int i = 0; i < 2; ++i) {
    s.kernel[i] = sizes[8 + i];
    s.stride[i] = sizes[10 + i];
    s.padding[i] = sizes[12 + i];
    s.dilation[i] = sizes[14 + i];
  }
  return s;
}

template <class T>
const T* as(const void* x) {
  return static_cast<const T*>(x);
}

template <class T>
T* as(void* x) {
  return static_cast<T*>(x);
}

#ifdef __AVX512BF16__
constexpr bool kTakesBf16 = true;
#else
constexpr bool kTakesBf16 = false;
#endif

// Calls `run` with a value of the type of the maps.
template <class Run>
void with_type([[maybe_unused]] bool bf16, const Run& run) {
#ifdef __AVX512BF16__
  if (bf16) return run(Bf16());
#endif
  run(float());
}

}  // namespace

extern "C" {

// Whether maps and filters may be bfloat16.
int attn_scaled_conv_takes_bf16() { return kTakesBf16; }

void attn_scaled_conv(const Index* sizes, int bf16, int threads, const void* x, const void* weight, const float* scale,
                      void* y, void* scratch) {
  const Shape s = shape_of(sizes, threads);
  with_type(bf16, [&](auto type) {
    using T = decltype(type);
    forward(s, as<T>(x), as<T>(weight), scale, as<T>(y), as<T>(scratch));
  });
}

// dx may be null: the input needs no gradient.
void attn_scaled_conv_backward(const Index* sizes, int bf16, int threads, const void* dy, const void* x, const void* weight,
                               const float* scale, void* dx, float* dweight, float* dscale, void* scratch) {
  const Shape s = shape_of(sizes, threads);
  const std::vector<Pairs> pairs = connected(s);
  with_type(bf16, [&](auto type) {
    using T = decltype(type);
    if (dx) input_gradient(s, pairs, as<T>(dy), as<T>(weight), scale, as<T>(dx), as<T>(scratch));
    filter_gradients(s, pairs, as<T>(dy), as<T>(x), as<T>(weight), scale, dweight, dscale);
  });
}
}
