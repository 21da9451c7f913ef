/** PyTorch's names, without `torch.`. */
export type Dtype =
  | "bool" | "int8" | "uint8" | "int16" | "uint16" | "int32" | "uint32" | "int64" | "uint64"
  | "float8_e4m3fn" | "float8_e4m3fnuz" | "float8_e5m2" | "float8_e5m2fnuz" | "float8_e8m0fnu"
  | "float16" | "bfloat16" | "float32" | "float64"
  | "complex32" | "complex64" | "complex128";

export interface Tensor {
  dtype: Dtype;
  /** Empty for a scalar. Values are in C order: the last dimension runs fastest. */
  shape: number[];
  /**
   * float16 and bfloat16 are bits in a Uint16Array, bool and float8 bytes in a Uint8Array, and complex numbers pairs.
   * Tied tensors share one array.
   */
  data:
    | Int8Array | Uint8Array | Int16Array | Uint16Array | Int32Array | Uint32Array | BigInt64Array | BigUint64Array
    | Float32Array | Float64Array;
}

export interface Options {
  /** The network of an ensemble, from 0; needed if there are several. */
  member?: number;
  /**
   * Returns the next standard normal number: a posterior draw in place of the mean. It is called for each shared tensor in
   * turn, once for each component of the bank and once for each outlier of the tensor.
   */
  normals?: () => number;
}

/**
 * Thrown when an artifact cannot be fetched or decoded: it is damaged, is no artifact, or does not fit in memory. The
 * message says why.
 */
export class ArtifactError extends Error {}

/**
 * Decodes an artifact of gbnn-compress: the posterior mean of every tensor of the network, in the order of its state
 * dict (JavaScript puts names that are whole numbers first), or with `normals` a posterior draw. The bits of the mean are those that `gbnn-compress decompress` writes.
 *
 * @throws ArtifactError if the artifact is damaged, RangeError if there is no such member.
 */
export function decode(
  artifact: Uint8Array | ArrayBuffer | Response,
  options?: Options,
): Promise<Record<string, Tensor>>;
