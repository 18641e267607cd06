"""Videos to frames: `DecodePool(...).decode(uri, spec)` gives a `Clip` or raises one `VideoError`, whatever the file does.

The life of a file here: `pool` sends it to a child process (`child`), which looks at it (`probe`), reads where its frames are (`index`),
chooses sample times and a size (`sampling`), and takes those frames with one of two decoders (`frames_pyav`, `frames_decord`) behind one
function (`decode`). `limits` says what a file may be at most, `confine` what the child may do. Everything but the pool is safe only
inside the child: a decoder can hang for ever or take its process with it.
"""
