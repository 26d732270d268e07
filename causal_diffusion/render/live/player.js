// Frames that have arrived, and a clock that walks over them.

const START = 0.25; // seconds that must be there before the clock goes, and goes on

export class Player {
  constructor(fps, joints, trail = 8) {
    this.fps = fps;
    this.joints = joints;
    this.kept = Math.ceil(trail * fps); // frames that stay behind the clock, for the path
    this.pieces = []; // {index, count, data}
    this.received = 0; // frames
    this.clock = 0; // frames, between whole ones too
    this.waiting = true;
    this.ended = false;
  }

  add(index, count, data) {
    if (index !== this.received) throw new Error(`frame ${index} came where ${this.received} was due`);
    this.pieces.push({ index, count, data });
    this.received = index + count;
    while (this.pieces.length > 1 && this.pieces[0].index + this.pieces[0].count < this.clock - this.kept) {
      this.pieces.shift();
    }
  }

  get shown() { return this.received ? Math.floor(this.clock) + 1 : 0; }
  get buffered() { return Math.max(0, this.received - 1 - this.clock) / this.fps; }
  get first() { return this.pieces.length ? this.pieces[0].index : 0; }

  advance(seconds) {
    if (!this.received) return;
    if (this.waiting && (this.buffered >= START || this.ended)) this.waiting = false;
    if (this.waiting) return;
    const end = this.received - 1;
    this.clock = Math.min(this.clock + seconds * this.fps, end);
    if (this.clock === end) this.waiting = true;
  }

  frame(index) {
    for (let i = this.pieces.length - 1; i >= 0; i--) {
      const piece = this.pieces[i];
      if (index >= piece.index) {
        const size = 3 * this.joints;
        return piece.data.subarray((index - piece.index) * size, (index - piece.index + 1) * size);
      }
    }
    return null;
  }

  // The pose now, between two frames; false: there is none yet.
  pose(out) {
    if (!this.received) return false;
    const low = Math.floor(this.clock);
    const a = this.frame(low);
    const b = this.frame(Math.min(low + 1, this.received - 1));
    const share = this.clock - low;
    for (let i = 0; i < out.length; i++) out[i] = a[i] + share * (b[i] - a[i]);
    return true;
  }
}
