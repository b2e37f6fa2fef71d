// The operators of ops.py for the CPU, float and bfloat16, NHWC and NCHW. Plain C functions: nothing of torch's C++ is needed.
//
// Sums run in float over a few dozen values, then in double. Work is shared out by shapes alone, so that results do not depend
// on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#define UNROLLED _Pragma("GCC unroll 8")
#define INLINED __attribute__((always_inline))

namespace {

using Index = int64_t;

struct BFloat16 {
  uint16_t bits;
};

// Sixteen floats: compilers with GCC's vector extension split or map them to whatever the CPU has.
using Vector = float __attribute__((vector_size(64)));
using Integers = int32_t __attribute__((vector_size(64)));
using Bits = uint32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));
constexpr Index kLanes = 16;

// The same code serves one float or sixteen.

template <class V> struct Types { using Int = int32_t; using Unsigned = uint32_t; };
template <> struct Types<Vector> { using Int = Integers; using Unsigned = Bits; };

template <class V> inline V splat(float x) { return V{} + x; }

template <class Mask, class V> inline V select(Mask mask, V yes, V no) { return mask ? yes : no; }

template <class V> INLINED inline V load(const float* x) {
  V value;
  std::memcpy(&value, x, sizeof value);
  return value;
}

template <class V> INLINED inline V load(const BFloat16* x) {
  typename Types<V>::Unsigned bits;
  if constexpr (std::is_same_v<V, float>) {
    bits = x->bits;
  } else {
    Halves halves;
    std::memcpy(&halves, x, sizeof halves);
    bits = __builtin_convertvector(halves, Bits);
  }
  bits <<= 16;
  V value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class V> INLINED inline void store(float* target, V x) { std::memcpy(target, &x, sizeof x); }

// To the nearest, ties to even; a NaN stays one.
template <class V> INLINED inline void store(BFloat16* target, V x) {
  typename Types<V>::Unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const V same = x;
  if constexpr (std::is_same_v<V, float>) {
    target->bits = static_cast<uint16_t>(same == same ? bits : 0x7fc0u);
  } else {
    bits = (same == same) ? bits : (Bits{} + 0x7fc0u);
    uint32_t each[kLanes];
    std::memcpy(each, &bits, sizeof bits);
#pragma omp simd
    for (Index lane = 0; lane < kLanes; ++lane) target[lane].bits = static_cast<uint16_t>(each[lane]);
  }
}

// Activations: value and derivative at z. A NaN passes.

struct Identity {
  template <class V> static V value(V z) { return z; }
  template <class V> static V slope(V) { return splat<V>(1.f); }
};

struct Relu {
  template <class V> static V value(V z) { return select(z < 0.f, V{}, z); }
  template <class V> static V slope(V z) { return select(z <= 0.f, V{}, splat<V>(1.f)); }
};

struct Relu6 {
  template <class V> static V value(V z) { return select(z < 0.f, V{}, select(z > 6.f, splat<V>(6.f), z)); }
  template <class V> static V slope(V z) { return select(z <= 0.f, V{}, select(z >= 6.f, V{}, splat<V>(1.f))); }
};

struct HardSwish {
  template <class V> static V value(V z) { return z * Relu6::value(z + 3.f) * (1.f / 6.f); }
  template <class V> static V slope(V z) {
    return select(z <= -3.f, V{}, select(z >= 3.f, splat<V>(1.f), z * (1.f / 3.f) + 0.5f));
  }
};

// e^x to about one unit in the last place (Cephes).
template <class V> INLINED inline V exponential(V x) {
  x = select(x < -87.f, splat<V>(-87.f), select(x > 88.f, splat<V>(88.f), x));
  const V rounded = (x * 1.44269504f + 12582912.f) - 12582912.f;
  const V r = (x - rounded * 0.693359375f) + rounded * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  const V whole = select(rounded == rounded, rounded, V{});
  typename Types<V>::Int bits;
  if constexpr (std::is_same_v<V, float>) bits = static_cast<int32_t>(whole);
  else bits = __builtin_convertvector(whole, Integers);
  bits = (bits + 127) << 23;
  V power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

template <class V> INLINED inline V sigmoid(V z) { return 1.f / (1.f + exponential(-z)); }

struct Silu {
  template <class V> static V value(V z) { return z * sigmoid(z); }
  template <class V> static V slope(V z) {
    const V s = sigmoid(z);
    return s * (1.f + z * (1.f - s));
  }
};

// Calls `run` with the activation of a number, in the order of ops.ACTS.
template <class Run>
void with_act(Index act, const Run& run) {
  switch (act) {
    case 1: return run(Relu());
    case 2: return run(Relu6());
    case 3: return run(HardSwish());
    case 4: return run(Silu());
    default: return run(Identity());
  }
}

struct Shape {
  Index n, c, pixels;
  bool nhwc;
  int threads;
  Index rows() const { return n * c; }
};

constexpr Index kRun = 64;    // pixels whose sums are kept in float (NHWC)
constexpr Index kSpan = 64;   // values that each lane sums in float (NCHW)
constexpr Index kBlock = 128;  // channels of a thread's turn in `each_row`

// Pixels of a sample are cut into parts, so that a small batch keeps all threads busy.
inline Index parts_of(const Shape& s) { return s.n >= 8 ? 1 : std::min<Index>(8, (s.pixels + kRun - 1) / kRun); }

// What a body of `each` reads with: V lanes at once, adjacent channels (NHWC) or adjacent pixels of one channel (NCHW).
template <class V, bool kNhwc> struct Lanes {
  using Value = V;
  template <class T> static V map(const T* x, Index at) { return load<V>(x + at); }
  static V vector(const float* x, Index at) {
    if constexpr (kNhwc) return load<V>(x + at);
    else return splat<V>(x[at]);
  }
};

// `each` for V channels of one pixel, from channel i (NHWC); lanes below `from` were done before.
template <int K, class V, class Body>
INLINED inline void add_lanes(Index c, Index at, Index row, Index i, Index from, float* __restrict run, const Body body) {
  V v[K ? K : 1];
  body(Lanes<V, true>(), at + i, row + i, i, v);
  UNROLLED for (int j = 0; j < K; ++j) {
    float* target = run + j * c + i;
    if (from) {
      for (Index lane = from; lane < kLanes; ++lane) target[lane] += reinterpret_cast<const float*>(&v[j])[lane];
    } else {
      store(target, load<V>(target) + v[j]);
    }
  }
}

template <int K, class Body>
INLINED inline void add_channels(Index c, Index at, Index row, float* run, const Body body) {
  Index i = 0;
  for (; i + kLanes <= c; i += kLanes) add_lanes<K, Vector>(c, at, row, i, 0, run, body);
  if (i == c) return;
  if (c > kLanes) add_lanes<K, Vector>(c, at, row, c - kLanes, i - (c - kLanes), run, body);
  else
    for (; i < c; ++i) add_lanes<K, float>(c, at, row, i, 0, run, body);
}

// Calls body(lanes, at, k, i, v) for all values of a map: the position of the first, that of its (sample, channel), its channel.
// Body adds to K sums of the (sample, channel) by writing v[0], v[1] ...; they end up in sums [K, N, C]. It may be called twice
// for a value, and must not write to what it reads.
template <int K, class Body>
void each(const Shape& s, double* sums, const Body& shared) {
  constexpr int kSums = K ? K : 1;
  const Index c = s.c, rows = s.rows();
  const int threads = rows * s.pixels < (1 << 15) ? 1 : s.threads;
  if (!s.nhwc) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Index row = 0; row < rows; ++row) {
      const Body body = shared;  // a copy stays in registers; stores might change what is shared
      double total[kSums] = {};
      const Index first = row * s.pixels, channel = row % c;
      for (Index start = 0; start < s.pixels; start += kLanes * kSpan) {
        const Index stop = std::min(s.pixels, start + kLanes * kSpan);
        Vector sum[kSums] = {}, v[kSums];
        float rest[kSums] = {}, one[kSums];
        Index p = start;
        for (; p + kLanes <= stop; p += kLanes) {
          body(Lanes<Vector, false>(), first + p, row, channel, v);
          UNROLLED for (int j = 0; j < K; ++j) sum[j] += v[j];
        }
        for (; p < stop; ++p) {
          body(Lanes<float, false>(), first + p, row, channel, one);
          UNROLLED for (int j = 0; j < K; ++j) rest[j] += one[j];
        }
        for (int j = 0; j < K; ++j) {
          total[j] += rest[j];
          for (Index lane = 0; lane < kLanes; ++lane) total[j] += sum[j][lane];
        }
      }
      for (int j = 0; j < K; ++j) sums[j * rows + row] = total[j];
    }
    return;
  }
  const Index parts = parts_of(s), items = s.n * parts;
  std::vector<double> partial(parts > 1 ? K * items * c : 0);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Index item = 0; item < items; ++item) {
    const Body body = shared;
    const Index n = item / parts, part = item % parts, row = n * c;
    std::vector<float> scratch(K * c);
    float* run = scratch.data();
    double* total = parts > 1 ? partial.data() + item * c : sums + row;
    const Index apart = parts > 1 ? items * c : rows;
    const Index begin = s.pixels * part / parts, end = s.pixels * (part + 1) / parts;
    for (Index start = begin; start < end; start += kRun) {
      const Index stop = std::min(end, start + kRun);
      // One pixel at a time: more side by side would disturb the processor's prefetching.
      for (Index p = start; p < stop; ++p) add_channels<K>(c, (n * s.pixels + p) * c, row, run, body);
      for (int j = 0; j < K; ++j) {
        double* sum = total + j * apart;
        float* of_run = run + j * c;
        if (start == begin) {
#pragma omp simd
          for (Index i = 0; i < c; ++i) sum[i] = of_run[i], of_run[i] = 0.f;
        } else {
#pragma omp simd
          for (Index i = 0; i < c; ++i) sum[i] += of_run[i], of_run[i] = 0.f;
        }
      }
    }
  }
  if (parts == 1) return;
  for (int j = 0; j < K; ++j)
    for (Index n = 0; n < s.n; ++n)
      for (Index i = 0; i < c; ++i) {
        double sum = 0;
        for (Index part = 0; part < parts; ++part) sum += partial[(j * items + n * parts + part) * c + i];
        sums[j * rows + n * c + i] = sum;
      }
}

// Calls body(k, i) for each (sample, channel): its number and its channel. A thread has a block of channels with all their
// samples, in order; so a body may add to what is kept by channel.
template <class Body>
void each_row(const Shape& s, const Body& shared) {
  const int threads = s.rows() < (1 << 12) ? 1 : s.threads;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Index first = 0; first < s.c; first += kBlock) {
    const Body body = shared;
    const Index stop = std::min(s.c, first + kBlock);
    for (Index n = 0; n < s.n; ++n) {
#pragma omp simd
      for (Index i = first; i < stop; ++i) body(n * s.c + i, i);
    }
  }
}

// The rows of `norm` [5, C]: norm(y) = (y - centre) * scale + bias, scale = weight * inverse; the batch's unbiased variance.
struct Norm {
  float *centre, *scale, *bias, *inverse, *unbiased;
  Norm(float* rows, Index c) : centre(rows), scale(rows + c), bias(rows + 2 * c), inverse(rows + 3 * c), unbiased(rows + 4 * c) {}
  // norm(y) and y - centre, for lanes of a body.
  template <class L> auto normed(L l, decltype(L::map(centre, 0)) off, Index i) const { return off * l.vector(scale, i) + l.vector(bias, i); }
  template <class T, class L> auto off(L l, const T* y, Index at, Index i) const { return l.map(y, at) - l.vector(centre, i); }
};

// Position of a value of a map in a map [C, H, W] of the same layout.
inline Index within(const Shape& s, Index at, Index k, Index i) { return at - (k - i) * s.pixels; }

// Sums of a basis [C, H, W] over H W; 1 without one.
std::vector<double> basis_sums(const Shape& s, const float* basis) {
  std::vector<double> total(s.c, basis ? 0.0 : 1.0);
  if (basis)
    for (Index i = 0; i < s.c; ++i)
      for (Index p = 0; p < s.pixels; ++p) total[i] += basis[s.nhwc ? p * s.c + i : i * s.pixels + p];
  return total;
}

// Of y: mean and variance of each (sample, channel), and with a basis [C, H, W] its weighted sums.
template <class T>
void moments(const T* y, const Shape& s, const float* basis, std::vector<double>& mean, std::vector<double>& variance,
             std::vector<double>& weighted) {
  const Index rows = s.rows(), pixels = s.pixels;
  std::vector<float> origins(rows);
  float* origin = origins.data();
  // Sums of differences from the first pixel: those of the values lose the variance where the mean is large.
  if (s.nhwc) each_row(s, [=](Index k, Index i) INLINED { origin[k] = load<float>(y + (k - i) * pixels + i); });
  else each_row(s, [=](Index k, Index) INLINED { origin[k] = load<float>(y + k * pixels); });
  std::vector<double> sums((basis ? 3 : 2) * rows);
  if (basis)
    each<3>(s, sums.data(), [=](auto l, Index at, Index k, Index i, auto* v) INLINED {
      const auto d = l.map(y, at) - l.vector(origin, k);
      v[0] = d, v[1] = d * d, v[2] = d * l.map(basis, within(s, at, k, i));
    });
  else
    each<2>(s, sums.data(), [=](auto l, Index at, Index k, Index, auto* v) INLINED {
      const auto d = l.map(y, at) - l.vector(origin, k);
      v[0] = d, v[1] = d * d;
    });
  const double *sum = sums.data(), share = 1.0 / pixels;
  double *means = mean.data(), *variances = variance.data(), *targets = weighted.data();
  each_row(s, [=](Index k, Index) INLINED {
    const double shifted = sum[k] * share, found = sum[rows + k] * share - shifted * shifted;
    means[k] = origin[k] + shifted;
    variances[k] = found < 0 ? 0 : found;  // a NaN passes
  });
  if (!basis) return;
  const std::vector<double> totals = basis_sums(s, basis);
  const double* total = totals.data();
  each_row(s, [=](Index k, Index i) INLINED { targets[k] = sum[2 * rows + k] + origin[k] * total[i]; });
}

// Fills `norm` from the batch's moments, or with running statistics (not null) from these.
void normalise(const Shape& s, const std::vector<double>& mean, const std::vector<double>& variance, const float* weight,
               const float* bias, const float* running_mean, const float* running_var, double eps, Norm norm) {
  const double count = static_cast<double>(s.n) * s.pixels, share = 1.0 / s.n;
  std::vector<double> centres(s.c), spreads(s.c);
  double *centre_of = centres.data(), *spread_of = spreads.data();
  if (!running_mean) {
    const double *means = mean.data(), *variances = variance.data();
    each_row(s, [=](Index k, Index i) INLINED { centre_of[i] += means[k] * share; });
    each_row(s, [=](Index k, Index i) INLINED {
      const double off = means[k] - centre_of[i];
      spread_of[i] += (variances[k] + off * off) * share;
    });
  }
  for (Index i = 0; i < s.c; ++i) {
    const double centre = running_mean ? running_mean[i] : centre_of[i], spread = running_mean ? running_var[i] : spread_of[i];
    const double inverse = 1 / std::sqrt(spread + eps);
    norm.centre[i] = static_cast<float>(centre);
    norm.inverse[i] = static_cast<float>(inverse);
    norm.scale[i] = static_cast<float>(weight[i] * inverse);
    norm.bias[i] = bias[i];
    norm.unbiased[i] = static_cast<float>(count > 1 ? spread * count / (count - 1) : spread);
  }
}

template <class T>
void squeeze(const T* y, const Shape& s, const float* weight, const float* bias, const float* running_mean,
             const float* running_var, double eps, const float* basis, Index act, float* mean, float* variance, float* rows,
             float* raw) {
  const Index count = s.rows();
  const Norm norm(rows, s.c);
  std::vector<double> means(count), variances(count), weighted(basis && !act ? count : 0);
  moments(y, s, act ? nullptr : basis, means, variances, weighted);
  normalise(s, means, variances, weight, bias, running_mean, running_var, eps, norm);
  if (!act) {
    const std::vector<double> totals = basis_sums(s, basis);
    const double *total = totals.data(), *found = means.data(), *spread = variances.data(), *by_basis = weighted.data();
    each_row(s, [=](Index k, Index i) INLINED {
      const double off = found[k] - norm.centre[i], scale = norm.scale[i];
      mean[k] = static_cast<float>(off * scale + norm.bias[i]);
      variance[k] = static_cast<float>(spread[k] * scale * scale);
      raw[k] = static_cast<float>(off);
      raw[count + k] = static_cast<float>(spread[k]);
    });
    if (basis)
      each_row(s, [=](Index k, Index i) INLINED {
        const double sum = by_basis[k] - norm.centre[i] * total[i];
        mean[k] = static_cast<float>(sum * norm.scale[i] + total[i] * norm.bias[i]);
        raw[2 * count + k] = static_cast<float>(sum);
      });
    return;
  }
  std::vector<double> sums(count);
  with_act(act, [&](auto kind) {
    using Act = decltype(kind);
    if (basis)
      each<1>(s, sums.data(), [=](auto l, Index at, Index k, Index i, auto* v) INLINED {
        v[0] = Act::value(norm.normed(l, norm.off(l, y, at, i), i)) * l.map(basis, within(s, at, k, i));
      });
    else
      each<1>(s, sums.data(), [=](auto l, Index at, Index, Index i, auto* v) INLINED { v[0] = Act::value(norm.normed(l, norm.off(l, y, at, i), i)); });
  });
  for (Index k = 0; k < count; ++k) mean[k] = static_cast<float>(sums[k] / (basis ? 1 : s.pixels));
}

template <class T>
void scale(const T* y, const Shape& s, const float* rows, const float* weights, const T* shortcut, Index act, bool relu,
           T* out) {
  const Norm norm(const_cast<float*>(rows), s.c);
  if (act) {
    with_act(act, [&](auto kind) {
      using Act = decltype(kind);
      each<0>(s, nullptr, [=](auto l, Index at, Index k, Index i, auto*) INLINED {
        store(out + at, Act::value(norm.normed(l, norm.off(l, y, at, i), i)) * l.vector(weights, k));
      });
    });
    return;
  }
  std::vector<float> products(2 * s.rows());
  float *factor = products.data(), *shift = factor + s.rows();
  each_row(s, [=](Index k, Index i) INLINED {
    factor[k] = norm.scale[i] * weights[k];
    shift[k] = norm.bias[i] * weights[k];
  });
  const float* centre = norm.centre;
  if (shortcut && relu)
    each<0>(s, nullptr, [=](auto l, Index at, Index k, Index i, auto*) INLINED {
      store(out + at, Relu::value((l.map(y, at) - l.vector(centre, i)) * l.vector(factor, k) + l.vector(shift, k) + l.map(shortcut, at)));
    });
  else if (shortcut)
    each<0>(s, nullptr, [=](auto l, Index at, Index k, Index i, auto*) INLINED {
      store(out + at, (l.map(y, at) - l.vector(centre, i)) * l.vector(factor, k) + l.vector(shift, k) + l.map(shortcut, at));
    });
  else if (relu)
    each<0>(s, nullptr, [=](auto l, Index at, Index k, Index i, auto*) INLINED {
      store(out + at, Relu::value((l.map(y, at) - l.vector(centre, i)) * l.vector(factor, k) + l.vector(shift, k)));
    });
  else
    each<0>(s, nullptr, [=](auto l, Index at, Index k, Index i, auto*) INLINED {
      store(out + at, (l.map(y, at) - l.vector(centre, i)) * l.vector(factor, k) + l.vector(shift, k));
    });
}

// The sums over H W that `squeeze_backward` needs, in link [5, N, C] after the weights, and the weights' gradient.
template <class T>
void scale_backward(const T* grad, const T* out, const T* y, const Shape& s, const float* rows, const float* weights,
                    const float* basis, Index act, bool relu, T* masked, float* link, float* dweights) {
  const Norm norm(const_cast<float*>(rows), s.c);
  const Index count = s.rows();
  std::vector<double> sums((act ? 5 : 2) * count);
  if (!act) {
    const float* centre = norm.centre;
    if (relu)
      each<2>(s, sums.data(), [=](auto l, Index at, Index, Index i, auto* v) INLINED {
        const auto g = l.map(grad, at);
        const auto m = select(l.map(out, at) <= 0.f, std::decay_t<decltype(g)>{}, g);
        store(masked + at, m);
        v[0] = m, v[1] = m * (l.map(y, at) - l.vector(centre, i));
      });
    else
      each<2>(s, sums.data(), [=](auto l, Index at, Index, Index i, auto* v) INLINED {
        const auto m = l.map(grad, at);
        v[0] = m, v[1] = m * (l.map(y, at) - l.vector(centre, i));
      });
  } else {
    const float share = 1.f / static_cast<float>(s.pixels);
    with_act(act, [&](auto kind) {
      using Act = decltype(kind);
      each<5>(s, sums.data(), [=](auto l, Index at, Index k, Index i, auto* v) INLINED {
        const auto off = norm.off(l, y, at, i), z = norm.normed(l, off, i), g = l.map(grad, at);
        const auto slope = Act::slope(z);
        auto b = slope * share;
        if (basis) b = slope * l.map(basis, within(s, at, k, i));
        v[0] = g * slope, v[1] = g * slope * off, v[2] = b, v[3] = b * off, v[4] = g * Act::value(z);
      });
    });
  }
  const double* sum = sums.data();
  std::copy_n(weights, count, link);
  if (act)
    each_row(s, [=](Index k, Index) INLINED {
      UNROLLED for (Index j = 0; j < 4; ++j) link[(j + 1) * count + k] = static_cast<float>(sum[j * count + k]);
      dweights[k] = static_cast<float>(sum[4 * count + k]);
    });
  else
    each_row(s, [=](Index k, Index i) INLINED {
      link[3 * count + k] = link[4 * count + k] = 0.f;
      link[count + k] = static_cast<float>(sum[k]);
      link[2 * count + k] = static_cast<float>(sum[count + k]);
      dweights[k] = static_cast<float>(sum[count + k] * norm.scale[i] + sum[k] * norm.bias[i]);
    });
}

// dy = (m * factor + share * basis) * act'(norm(y)) * scale + offset + slope * (y - centre); factor, share, slope, offset [N, C].
template <class T>
void backward(const T* m, const T* y, const Shape& s, Norm norm, const float* factor, const float* share, const float* basis,
              const float* offset, const float* slope, Index act, T* dy) {
  with_act(act, [&](auto kind) {
    using Act = decltype(kind);
    const auto run = [&](auto with_basis) {
      each<0>(s, nullptr, [=](auto l, Index at, Index k, Index i, auto*) INLINED {
        const auto off = norm.off(l, y, at, i);
        auto da = l.map(m, at) * l.vector(factor, k);
        if constexpr (decltype(with_basis)::value) da += l.vector(share, k) * l.map(basis, within(s, at, k, i));
        else da += l.vector(share, k);
        const auto dz = da * Act::slope(norm.normed(l, off, i));
        store(dy + at, dz * l.vector(norm.scale, i) + l.vector(offset, k) + l.vector(slope, k) * off);
      });
    };
    if (basis) run(std::true_type());
    else run(std::false_type());
  });
}

// From the sums of dz and dz * (y - centre) [C]: the gradients of weight and bias, and what y gets through the batch's statistics.
void through_statistics(const Shape& s, const std::vector<double>& total, Norm norm, bool training, float* dweight, float* dbias,
                        std::vector<double>& offset, std::vector<double>& slope) {
  const double count = static_cast<double>(s.n) * s.pixels;
  for (Index i = 0; i < s.c; ++i) {
    dbias[i] = static_cast<float>(total[i]);
    dweight[i] = static_cast<float>(total[s.c + i] * norm.inverse[i]);
    const double factor = training ? -norm.scale[i] / count : 0.0;
    offset[i] = factor * total[i];
    slope[i] = factor * norm.inverse[i] * norm.inverse[i] * total[s.c + i];
  }
}

template <class T>
void squeeze_backward(const T* m, const float* link, const T* y, const Shape& s, const float* rows, const float* raw,
                      const float* dmean, const float* dvar, const float* basis, bool training, Index act, T* dy,
                      float* dweight, float* dbias) {
  const Norm norm(const_cast<float*>(rows), s.c);
  const Index c = s.c, count = s.rows();
  const float *weights = link, *g0 = link + count, *g1 = g0 + count, *a0 = g1 + count, *a1 = a0 + count;
  const std::vector<double> basis_totals = act ? std::vector<double>(c) : basis_sums(s, basis);
  std::vector<double> totals(2 * c), offset(c), slope(c);
  const double* basis_total = basis_totals.data();
  double* total = totals.data();
  if (act)
    each_row(s, [=](Index k, Index i) INLINED {
      const double w = weights[k], e = dmean[k];
      total[i] += w * g0[k] + e * a0[k];
      total[c + i] += w * g1[k] + e * a1[k];
    });
  else
    each_row(s, [=, by_mean = raw + (basis ? 2 : 0) * count](Index k, Index i) INLINED {
      const double w = weights[k], e = dmean[k];
      total[i] += w * g0[k] + e * basis_total[i];
      total[c + i] += w * g1[k] + e * by_mean[k] + 2.0 * dvar[k] * norm.scale[i] * raw[count + k];
    });
  through_statistics(s, totals, norm, training, dweight, dbias, offset, slope);
  std::vector<float> rest(3 * count);
  float *share = rest.data(), *offsets = share + count, *slopes = offsets + count;
  const float part = basis ? 1.f : 1.f / static_cast<float>(s.pixels);
  const double twice = 2.0 / s.pixels, *offset_of = offset.data(), *slope_of = slope.data();
  if (act)
    each_row(s, [=](Index k, Index i) INLINED {
      share[k] = dmean[k] * part;
      slopes[k] = static_cast<float>(slope_of[i]);
      offsets[k] = static_cast<float>(offset_of[i]);
    });
  else
    each_row(s, [=](Index k, Index i) INLINED {
      const double own = twice * dvar[k] * norm.scale[i] * norm.scale[i];
      share[k] = dmean[k] * part;
      slopes[k] = static_cast<float>(slope_of[i] + own);
      offsets[k] = static_cast<float>(offset_of[i] - own * raw[k]);
    });
  backward(m, y, s, norm, weights, share, basis, offsets, slopes, act, dy);
}

template <class T>
void norm_act(const T* y, const Shape& s, const float* weight, const float* bias, const float* running_mean,
              const float* running_var, double eps, Index act, T* out, float* pooled, float* rows) {
  const Index count = s.rows();
  const Norm norm(rows, s.c);
  std::vector<double> means(count), variances(count), none, sums(pooled ? count : 0);
  if (!running_mean) moments(y, s, nullptr, means, variances, none);
  normalise(s, means, variances, weight, bias, running_mean, running_var, eps, norm);
  with_act(act, [&](auto kind) {
    using Act = decltype(kind);
    if (pooled)
      each<1>(s, sums.data(), [=](auto l, Index at, Index, Index i, auto* v) INLINED {
        v[0] = Act::value(norm.normed(l, norm.off(l, y, at, i), i));
        store(out + at, v[0]);
      });
    else
      each<0>(s, nullptr, [=](auto l, Index at, Index, Index i, auto*) INLINED {
        store(out + at, Act::value(norm.normed(l, norm.off(l, y, at, i), i)));
      });
  });
  if (pooled)
    for (Index k = 0; k < count; ++k) pooled[k] = static_cast<float>(sums[k] / s.pixels);
}

template <class T>
void norm_act_backward(const T* grad, const float* grad_pooled, const T* y, const Shape& s, const float* rows, bool training,
                       Index act, T* dy, float* dweight, float* dbias) {
  const Norm norm(const_cast<float*>(rows), s.c);
  const Index c = s.c, count = s.rows();
  std::vector<float> shares(count), ones(count, 1.f), rest(2 * count);
  float *share = shares.data(), *offsets = rest.data(), *slopes = offsets + count;
  const float part = 1.f / static_cast<float>(s.pixels);
  if (grad_pooled) each_row(s, [=](Index k, Index) INLINED { share[k] = grad_pooled[k] * part; });
  std::vector<double> sums(2 * count), totals(2 * c), offset(c), slope(c);
  with_act(act, [&](auto kind) {
    using Act = decltype(kind);
    each<2>(s, sums.data(), [=](auto l, Index at, Index k, Index i, auto* v) INLINED {
      const auto off = norm.off(l, y, at, i);
      const auto dz = (l.map(grad, at) + l.vector(share, k)) * Act::slope(norm.normed(l, off, i));
      v[0] = dz, v[1] = dz * off;
    });
  });
  const double *sum = sums.data(), *offset_of = offset.data(), *slope_of = slope.data();
  double* total = totals.data();
  each_row(s, [=](Index k, Index i) INLINED {
    total[i] += sum[k];
    total[c + i] += sum[count + k];
  });
  through_statistics(s, totals, norm, training, dweight, dbias, offset, slope);
  each_row(s, [=](Index k, Index i) INLINED {
    offsets[k] = static_cast<float>(offset_of[i]);
    slopes[k] = static_cast<float>(slope_of[i]);
  });
  backward(grad, y, s, norm, ones.data(), share, nullptr, offsets, slopes, act, dy);
}

// Calls `run` with a null pointer of the map's type.
template <class Run>
void with_type(int bf16, const Run& run) {
  if (bf16) run(static_cast<const BFloat16*>(nullptr));
  else run(static_cast<const float*>(nullptr));
}

}  // namespace

#define SHAPE int bf16, int nhwc, int threads, Index n, Index c, Index pixels
#define MAP(x) static_cast<decltype(type)>(x)
#define OUT(x) const_cast<std::remove_const_t<std::remove_pointer_t<decltype(type)>>*>(MAP(x))

extern "C" {

void attn_squeeze(SHAPE, const void* y, const float* weight, const float* bias, const float* running_mean,
                  const float* running_var, double eps, const float* basis, Index act, float* mean, float* variance, float* norm,
                  float* raw) {
  with_type(bf16, [&](auto type) {
    squeeze(MAP(y), {n, c, pixels, nhwc != 0, threads}, weight, bias, running_mean, running_var, eps, basis, act, mean, variance,
            norm, raw);
  });
}

void attn_squeeze_backward(SHAPE, const void* m, const float* link, const void* y, const float* norm, const float* raw,
                           const float* dmean, const float* dvar, const float* basis, Index training, Index act, void* dy,
                           float* dweight, float* dbias) {
  with_type(bf16, [&](auto type) {
    squeeze_backward(MAP(m), link, MAP(y), {n, c, pixels, nhwc != 0, threads}, norm, raw, dmean, dvar, basis, training != 0, act,
                     OUT(dy), dweight, dbias);
  });
}

void attn_scale(SHAPE, const void* y, const float* norm, const float* weights, const void* shortcut, Index act, Index relu,
                void* out) {
  with_type(bf16, [&](auto type) {
    scale(MAP(y), {n, c, pixels, nhwc != 0, threads}, norm, weights, MAP(shortcut), act, relu != 0, OUT(out));
  });
}

void attn_scale_backward(SHAPE, const void* grad, const void* out, const void* y, const float* norm, const float* weights,
                         const float* basis, Index act, Index relu, void* masked, float* link, float* dweights) {
  with_type(bf16, [&](auto type) {
    scale_backward(MAP(grad), MAP(out), MAP(y), {n, c, pixels, nhwc != 0, threads}, norm, weights, basis, act, relu != 0,
                   OUT(masked), link, dweights);
  });
}

void attn_norm_act(SHAPE, const void* y, const float* weight, const float* bias, const float* running_mean,
                   const float* running_var, double eps, Index act, void* out, float* pooled, float* norm) {
  with_type(bf16, [&](auto type) {
    norm_act(MAP(y), {n, c, pixels, nhwc != 0, threads}, weight, bias, running_mean, running_var, eps, act, OUT(out), pooled,
             norm);
  });
}

void attn_norm_act_backward(SHAPE, const void* grad, const float* grad_pooled, const void* y, const float* norm,
                            Index training, Index act, void* dy, float* dweight, float* dbias) {
  with_type(bf16, [&](auto type) {
    norm_act_backward(MAP(grad), grad_pooled, MAP(y), {n, c, pixels, nhwc != 0, threads}, norm, training != 0, act, OUT(dy),
                      dweight, dbias);
  });
}
}
