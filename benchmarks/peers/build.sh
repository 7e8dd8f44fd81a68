# The common end of the scripts here: builds $SOURCE in $WORK, and leaves the programs in $TARGET.
cmake -S "$SOURCE" -B "$WORK/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_CURL=OFF > "$WORK/cmake.log" 2>&1 || { tail -20 "$WORK/cmake.log" >&2; exit 1; }
cmake --build "$WORK/build" -j "$(nproc)" --target llama-batched-bench llama-quantize > "$WORK/make.log" 2>&1 ||
    { tail -20 "$WORK/make.log" >&2; exit 1; }
mkdir -p "$TARGET"
cp "$WORK"/build/bin/llama-batched-bench "$WORK"/build/bin/llama-quantize "$TARGET"
echo "$TARGET"
