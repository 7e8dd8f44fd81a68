// A llama-shaped language model as decoding reads it: packed matrices, and all other parameters.
//
//     x = embedding_scale * embedding[token]
//     each block:  x = x + after_attention(output(attention(rotary(norms(qkv(attention_norm(x)))))))
//                  x = x + after_mlp(down(activation(gate(mlp_norm(x))) * up(mlp_norm(x))))
//     logits = cap(logit_scale * head(final_norm(x)))
//
// Norms are by root mean square. Norms, biases and soft caps that a model does not have are skipped.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "decode/matrix.h"
#include "decode/row_kernels.h"

namespace layercoop::decode {

struct Norm {
  std::vector<float> weight;  // empty: no norm
  float eps = 0.0f;
};

// A linear map; a null matrix where the model has none.
struct Linear {
  std::shared_ptr<const Matrix> matrix;
  std::vector<float> bias;  // empty, or one for each row of the matrix
};

struct Block {
  Norm attention_norm;
  Linear qkv;  // queries, keys, values, each head after head; null if the attention half is not loaded
  Norm query_norm;
  Norm key_norm;
  Linear output;
  Norm after_attention;

  Norm mlp_norm;
  Linear gate_up;  // sixteen rows of gate and sixteen of up alternate; padded with zeros. Null if the MLP half is not
                   // loaded
  Linear down;
  Norm after_mlp;

  int rotary = -1;          // index into the model's rotaries; negative: none
  std::int64_t window = 0;  // number of last tokens that a token sees, itself included; 0: all
};

// Cosines and sines [positions, width / 2].
struct Rotary {
  std::vector<float> cos;
  std::vector<float> sin;
};

struct Model {
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t width = 0;  // of a head
  std::int64_t inner = 0;  // of the MLP
  float scale = 1.0f;      // of scores
  float score_cap = 0.0f;  // 0: none
  Activation activation = Activation::silu;

  std::vector<Block> blocks;
  std::vector<Rotary> rotaries;
  std::int64_t positions = 0;  // rows of each

  std::shared_ptr<const Matrix> embedding;
  float embedding_scale = 1.0f;
  Norm final_norm;
  Linear head;
  float logit_scale = 1.0f;
  float logit_cap = 0.0f;  // 0: none

  std::int64_t vocabulary() const noexcept { return head.matrix->rows(); }
  std::int64_t padded_inner() const noexcept { return (inner + kTile - 1) / kTile * kTile; }
  std::int64_t qkv_rows() const noexcept { return (heads + 2 * kv_heads) * width; }
};

}  // namespace layercoop::decode
