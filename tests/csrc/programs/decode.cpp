// Steps of small random models, for the sanitizers (`make sanitize`): every format of weights and of keys and values,
// odd sizes, short and long calls, forks, windows, several threads. Ends with status 1 where threads or cuts change a
// bit.
#include <cstdio>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/pool.h"
#include "small_models.h"

using namespace small;

int main() {
  const Sizes all[] = {{1, 1, 1, 2, 1, 3}, {33, 5, 1, 6, 35, 17}, {48, 14, 2, 18, 40, 50}};
  for (const cpu::Isa level : cpu::available_isas()) {
    cpu::set_isa(cpu::isa_name(level));
    for (const Sizes& sizes : all) {
      for (const Format format : {Format::fp32, Format::bf16, Format::int8, Format::int4}) {
        const Model model = make(sizes, format);
        for (const KvFormat kv : {KvFormat::fp32, KvFormat::bf16, KvFormat::fp16, KvFormat::int8}) {
          cpu::set_num_threads(1);
          const std::vector<float> expected = logits(model, kv, 37, 37);
          cpu::set_num_threads(3);
          for (const std::int32_t piece : {37, 8, 1}) {
            if (logits(model, kv, 37, piece) != expected) {
              std::fprintf(stderr, "decode: threads or cuts change what comes out\n");
              return 1;
            }
          }
        }
      }
    }
  }
  std::printf("decode: ok\n");
  return 0;
}
