// The picture of a sound: its waveform, and its spectrum by a short Fourier transform.

const SIZE = 1024;

export function drawWave(canvas, samples, colour) {
  const pen = canvas.getContext("2d"), { width, height } = canvas;
  pen.clearRect(0, 0, width, height);
  pen.fillStyle = colour;
  const each = samples.length / width;
  for (let x = 0; x < width; x++) {
    let low = 0, high = 0;
    for (let i = Math.floor(x * each); i < (x + 1) * each; i++) {
      const value = samples[i] || 0;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    const top = (1 - high) * height / 2;
    pen.fillRect(x, top, 1, Math.max(1, (high - low) * height / 2));
  }
}

export function drawSpectrum(canvas, samples, rate) {
  const pen = canvas.getContext("2d"), { width, height } = canvas;
  const image = pen.createImageData(width, height);
  const window = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos(2 * Math.PI * i / SIZE));
  const real = new Float32Array(SIZE), imaginary = new Float32Array(SIZE);
  const bins = new Float32Array(SIZE / 2);
  const lowest = Math.log(60), highest = Math.log(rate / 2);
  for (let x = 0; x < width; x++) {
    const start = Math.floor((samples.length - SIZE) * x / width);
    for (let i = 0; i < SIZE; i++) { real[i] = (samples[start + i] || 0) * window[i]; imaginary[i] = 0; }
    transform(real, imaginary);
    for (let i = 0; i < SIZE / 2; i++) bins[i] = 10 * Math.log10(real[i] ** 2 + imaginary[i] ** 2 + 1e-9);
    for (let y = 0; y < height; y++) {
      const hertz = Math.exp(highest - (highest - lowest) * y / height);
      const level = bins[Math.min(SIZE / 2 - 1, Math.round(hertz * SIZE / rate))];
      const share = Math.min(1, Math.max(0, (level + 45) / 85));
      image.data.set([255 * share ** 0.8, 255 * share ** 2, 90 + 120 * Math.sin(Math.PI * share), 255], 4 * (y * width + x));
    }
  }
  pen.putImageData(image, 0, 0);
}

// Radix-2, in place.
function transform(real, imaginary) {
  const n = real.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [real[i], real[j]] = [real[j], real[i]];
      [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]];
    }
  }
  for (let size = 2; size <= n; size <<= 1) {
    const angle = -2 * Math.PI / size;
    for (let start = 0; start < n; start += size) {
      for (let k = 0; k < size / 2; k++) {
        const c = Math.cos(angle * k), s = Math.sin(angle * k), a = start + k, b = a + size / 2;
        const r = real[b] * c - imaginary[b] * s, i = real[b] * s + imaginary[b] * c;
        real[b] = real[a] - r; imaginary[b] = imaginary[a] - i;
        real[a] += r; imaginary[a] += i;
      }
    }
  }
}
