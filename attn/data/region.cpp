// Decodes a rectangle of a JPEG file and resizes it, with the pixels that Pillow's decoder, crop and resize give.
//
// Only the rows and columns that are needed leave the decoder (jpeg_crop_scanline, jpeg_skip_scanlines). A margin is decoded
// around them, because the upsampling of the colours looks at neighbours. The resampling is Pillow's (src/libImaging/Resample.c):
// coefficients with 22 binary digits, first rows, then columns, each rounded to 8 bits.

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <cmath>
#include <vector>

#include <jpeglib.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

constexpr int DIGITS = 22;
constexpr int MARGIN = 16;  // pixels; one pair of colour samples would do
constexpr int BLOCK = 64;

enum Filter { NONE = 0, BILINEAR = 1, BICUBIC = 2 };

struct Failure {
    jpeg_error_mgr manager;
    jmp_buf jump;
};

void leave(j_common_ptr decoder) { longjmp(reinterpret_cast<Failure*>(decoder->err)->jump, 1); }
void silent(j_common_ptr) {}

double weight(int filter, double x) {
    x = std::fabs(x);
    if (filter == BILINEAR) return x < 1.0 ? 1.0 - x : 0.0;
    const double a = -0.5;
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

// For each output in a window: the first input, the number of inputs, and their weights.
struct Taps {
    int most = 1;
    std::vector<int> first, count;
    std::vector<int32_t> weights;

    Taps(int in, int out, int from, int kept, int filter) {
        const bool same = in == out;
        const double scale = static_cast<double>(in) / out, filterscale = scale < 1.0 ? 1.0 : scale;
        const double support = (filter == BICUBIC ? 2.0 : 1.0) * filterscale, inverse = 1.0 / filterscale;
        if (!same) most = static_cast<int>(std::ceil(support)) * 2 + 1;
        first.resize(kept);
        count.resize(kept);
        weights.assign(static_cast<size_t>(kept) * most, 0);
        std::vector<double> k(most);
        for (int i = 0; i < kept; i++) {
            int32_t* w = &weights[static_cast<size_t>(i) * most];
            if (same) {
                first[i] = from + i, count[i] = 1, w[0] = 1 << DIGITS;
                continue;
            }
            const double centre = (from + i + 0.5) * scale;
            int low = static_cast<int>(centre - support + 0.5), high = static_cast<int>(centre + support + 0.5);
            if (low < 0) low = 0;
            if (high > in) high = in;
            double sum = 0;
            for (int x = 0; x < high - low; x++) sum += k[x] = weight(filter, (x + low - centre + 0.5) * inverse);
            for (int x = 0; x < high - low; x++) {
                const double value = (sum != 0.0 ? k[x] / sum : k[x]) * (1 << DIGITS);
                w[x] = static_cast<int32_t>(value < 0 ? -0.5 + value : 0.5 + value);
            }
            first[i] = low, count[i] = high - low;
        }
    }

    int begin() const { return first.front(); }
    int end() const {
        int last = 0;
        for (size_t i = 0; i < first.size(); i++) last = first[i] + count[i] > last ? first[i] + count[i] : last;
        return last;
    }
};

inline uint8_t clipped(int32_t value) {
    value >>= DIGITS;
    return value < 0 ? 0 : value > 255 ? 255 : static_cast<uint8_t>(value);
}

// Two pixels of four bytes are weighted at a time.
struct Row {
    int pairs;
    std::vector<int> first;
    std::vector<int32_t> weights;

    explicit Row(const Taps& taps) : pairs((taps.most + 1) / 2), first(taps.first), weights(taps.first.size() * pairs * 8, 0) {
        for (size_t i = 0; i < first.size(); i++)
            for (int x = 0; x < taps.count[i]; x++)
                for (int c = 0; c < 4; c++) weights[(i * pairs * 2 + x) * 4 + c] = taps.weights[i * taps.most + x];
    }

    // `source`: RGBX pixels from column `offset` on, and two pixels more; `target`: RGB, and one byte more.
    void resample(const uint8_t* source, int offset, uint8_t* target) const {
        for (size_t i = 0; i < first.size(); i++, target += 3) {
            const uint8_t* pixel = source + static_cast<ptrdiff_t>(first[i] - offset) * 4;
            const int32_t* w = &weights[i * pairs * 8];
#ifdef __AVX2__
            __m256i sum = _mm256_setzero_si256();
            for (int p = 0; p < pairs; p++, pixel += 8, w += 8) {
                const __m256i two = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(pixel)));
                sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(two, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w))));
            }
            __m128i rgbx = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
            rgbx = _mm_srai_epi32(_mm_add_epi32(rgbx, _mm_set1_epi32(1 << (DIGITS - 1))), DIGITS);
            rgbx = _mm_packus_epi16(_mm_packs_epi32(rgbx, rgbx), rgbx);
            const int32_t result = _mm_cvtsi128_si32(rgbx);
            std::memcpy(target, &result, 4);
#else
            int32_t sum[8] = {0};
            for (int p = 0; p < pairs; p++, pixel += 8, w += 8)
                for (int j = 0; j < 8; j++) sum[j] += pixel[j] * w[j];
            for (int c = 0; c < 3; c++) target[c] = clipped(sum[c] + sum[c + 4] + (1 << (DIGITS - 1)));
#endif
        }
    }
};

// Rows of `length` bytes, the first of which is row `offset`; BLOCK bytes more may be read and written after the last.
void resample_columns(const Taps& taps, const uint8_t* rows, int offset, int length, uint8_t* target) {
    for (size_t i = 0; i < taps.first.size(); i++, target += length) {
        const int32_t* w = &taps.weights[i * taps.most];
        const uint8_t* top = rows + static_cast<ptrdiff_t>(taps.first[i] - offset) * length;
        for (int x = 0; x < length; x += BLOCK) {
            int32_t sum[BLOCK];
            for (int j = 0; j < BLOCK; j++) sum[j] = 1 << (DIGITS - 1);
            for (int t = 0; t < taps.count[i]; t++) {
                const uint8_t* row = top + static_cast<ptrdiff_t>(t) * length + x;
                const int32_t factor = w[t];
                for (int j = 0; j < BLOCK; j++) sum[j] += factor * row[j];
            }
            for (int j = 0; j < BLOCK; j++) target[x + j] = clipped(sum[j]);
        }
    }
}

struct Decoder {
    jpeg_decompress_struct state;
    Failure failure;

    Decoder() {
        std::memset(&state, 0, sizeof state);
        state.err = jpeg_std_error(&failure.manager);
        failure.manager.error_exit = leave;
        failure.manager.output_message = silent;
    }
    ~Decoder() { jpeg_destroy_decompress(&state); }
};

// Nothing between setjmp and longjmp may have a destructor.
bool read_header(Decoder& decoder, const uint8_t* content, int64_t size) {
    jpeg_decompress_struct& state = decoder.state;
    if (setjmp(decoder.failure.jump)) return false;
    jpeg_create_decompress(&state);
    jpeg_mem_src(&state, content, static_cast<unsigned long>(size));
    jpeg_read_header(&state, TRUE);
    const J_COLOR_SPACE kind = state.jpeg_color_space;
    return kind == JCS_GRAYSCALE || kind == JCS_YCbCr || kind == JCS_RGB;
}

// The rows from `top` to `bottom` of the columns from `left` to `right`, one after the other, as RGBX, or resampled by `across`.
// `line` holds a row of the image, and some pixels more.
bool read_rows(Decoder& decoder, int left, int right, int top, int bottom, const Row* across, int length, uint8_t* line,
               uint8_t* rows) {
    jpeg_decompress_struct& state = decoder.state;
    if (setjmp(decoder.failure.jump)) return false;
    state.out_color_space = JCS_EXT_RGBX;
    jpeg_start_decompress(&state);
    JDIMENSION offset = left > MARGIN ? left - MARGIN : 0;
    JDIMENSION width = right + MARGIN < static_cast<int>(state.output_width) ? right + MARGIN : state.output_width;
    width -= offset;
    if (width < state.output_width) jpeg_crop_scanline(&state, &offset, &width);
    if (top > MARGIN) jpeg_skip_scanlines(&state, top - MARGIN);
    const int ahead = left - static_cast<int>(offset);
    while (static_cast<int>(state.output_scanline) < bottom) {
        const int row = state.output_scanline;
        JSAMPROW target = line;
        if (jpeg_read_scanlines(&state, &target, 1) != 1) return false;
        if (row < top) continue;
        uint8_t* out = rows + static_cast<ptrdiff_t>(row - top) * length;
        if (across)
            across->resample(line, -ahead, out);
        else
            std::memcpy(out, line + 4 * ahead, length);
    }
    return decoder.failure.manager.num_warnings == 0;
}

}  // namespace

extern "C" {

// Width and height of a JPEG file whose colours this decoder supports; returns 0, or 1 if it does not.
int attn_jpeg_size(const uint8_t* content, int64_t size, int32_t* found) {
    Decoder decoder;
    if (!read_header(decoder, content, size)) return 1;
    found[0] = decoder.state.image_width;
    found[1] = decoder.state.image_height;
    return 0;
}

// The rectangle `box` (left, top, width, height) of an image, resized to `resized` (width, height), and of that the rectangle
// `kept` (left, top, width, height), as RGB in `out` [height, width, 3], which has 64 bytes more. Without a filter `resized` must
// be the size of the box. `tall`: a box that loses more than twice as much height as width is resized in height first, as Pillow
// does since version 13. Returns 0; 1 if it cannot be decoded without a warning, or is of a kind that is left to others.
int attn_jpeg_resized(const uint8_t* content, int64_t size, const int32_t* box, const int32_t* resized, const int32_t* kept,
                      int filter, int tall, uint8_t* out) {
    Decoder decoder;
    if (!read_header(decoder, content, size)) return 1;
    if (box[0] < 0 || box[1] < 0 || box[2] < 1 || box[3] < 1) return 1;
    if (static_cast<JDIMENSION>(box[0] + box[2]) > decoder.state.image_width) return 1;
    if (static_cast<JDIMENSION>(box[1] + box[3]) > decoder.state.image_height) return 1;
    const Taps columns(box[2], resized[0], kept[0], kept[2], filter), lines(box[3], resized[1], kept[1], kept[3], filter);
    Row across(columns);
    for (int& first : across.first) first -= columns.begin();
    const int left = box[0] + columns.begin(), right = box[0] + columns.end();
    const int top = box[1] + lines.begin(), bottom = box[1] + lines.end();
    const bool height_first = tall && resized[1] < box[3] && box[3] - resized[1] > 2 * (box[2] - resized[0]);
    const int length = height_first ? 4 * (right - left) : 3 * kept[2];
    std::vector<uint8_t> line(4 * (static_cast<size_t>(decoder.state.image_width) + 64));
    std::vector<uint8_t> rows(static_cast<size_t>(bottom - top) * length + BLOCK);
    if (!read_rows(decoder, left, right, top, bottom, height_first ? nullptr : &across, length, line.data(), rows.data()))
        return 1;
    if (!height_first) {
        resample_columns(lines, rows.data(), lines.begin(), length, out);
        return 0;
    }
    std::vector<uint8_t> low(static_cast<size_t>(kept[3]) * length + BLOCK);
    resample_columns(lines, rows.data(), lines.begin(), length, low.data());
    for (int row = 0; row < kept[3]; row++) across.resample(low.data() + static_cast<ptrdiff_t>(row) * length, 0, out + row * 3 * kept[2]);
    return 0;
}

}  // extern "C"
