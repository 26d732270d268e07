// The picture: a body of tubes on an endless floor, its path, and a camera that goes along.

import * as THREE from "./three.module.js";

const COLOURS = { back: 0x0d1117, left: 0x58a6ff, right: 0xf0883e, middle: 0xd6dce3 };
export const PATHS = ["#bc8cff", "#3fb950", "#f778ba", "#e3b341"]; // one for each prompt in turn
const TALL = 1.7; // metres: the height to which the thicknesses below belong
const TILE = 2; // metres: the floor's pattern repeats
const PATH_POINTS = 320;
const SLOW = 0.045; // seconds
const COARSEST = 0.64; // of a pixel of the page

export class Scene {
  constructor(canvas) {
    this.renderer = new THREE.WebGLRenderer({ canvas, antialias: true });
    this.sharpness = Math.min(window.devicePixelRatio, 2);
    this.pace = 0; // seconds between two pictures, evened out
    this.renderer.shadowMap.enabled = true;
    this.renderer.shadowMap.type = THREE.PCFShadowMap;
    this.scene = new THREE.Scene();
    this.scene.background = new THREE.Color(COLOURS.back);
    this.scene.fog = new THREE.Fog(COLOURS.back, 6, 19);
    this.camera = new THREE.PerspectiveCamera(34, 1, 0.1, 60);
    this.view = { azimuth: 0.6, elevation: 0.28, distance: 5.0, target: new THREE.Vector3(0, 0.9, 0), fresh: true };
    this.body = null;
    this.#light();
    this.#ground();
    this.#path();
    this.#orbit(canvas);
    this.resize();
    window.addEventListener("resize", () => this.resize());
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.renderer.domElement;
    this.renderer.setPixelRatio(this.sharpness);
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / Math.max(height, 1);
    // A tall and narrow picture must not cut off arms: the angle across is at least this.
    const across = 0.42;
    const down = 2 * Math.atan(Math.tan(across / 2) / this.camera.aspect);
    this.camera.fov = THREE.MathUtils.radToDeg(Math.max(0.58, down));
    this.camera.setViewOffset(width, height, 0, 0.045 * height, width, height); // the text box covers the bottom
    this.camera.updateProjectionMatrix();
  }

  #light() {
    this.scene.add(new THREE.HemisphereLight(0xdfe9ff, 0x232b36, 1.7));
    this.sun = new THREE.DirectionalLight(0xffffff, 2.1);
    this.sun.castShadow = true;
    this.sun.shadow.mapSize.set(1024, 1024);
    this.sun.shadow.radius = 3;
    this.sun.shadow.bias = -0.0005;
    this.sun.shadow.normalBias = 0.02;
    Object.assign(this.sun.shadow.camera, { left: -2.6, right: 2.6, top: 2.6, bottom: -2.6, near: 1, far: 14 });
    this.scene.add(this.sun, this.sun.target);
  }

  #ground() {
    const side = 512, half = side / 2;
    const picture = document.createElement("canvas");
    picture.width = picture.height = side;
    const pen = picture.getContext("2d");
    pen.fillStyle = "#1a2029";
    pen.fillRect(0, 0, side, side);
    pen.fillStyle = "#232a34";
    pen.fillRect(0, 0, half, half);
    pen.fillRect(half, half, half, half);
    pen.strokeStyle = "#3b4553";
    pen.lineWidth = 4;
    for (const at of [0, half, side]) {
      pen.strokeRect(at - side, -side, side, 3 * side);
      pen.strokeRect(-side, at - side, 3 * side, side);
    }
    const pattern = new THREE.CanvasTexture(picture);
    pattern.wrapS = pattern.wrapT = THREE.RepeatWrapping;
    pattern.colorSpace = THREE.SRGBColorSpace;
    pattern.anisotropy = this.renderer.capabilities.getMaxAnisotropy();
    pattern.repeat.set(30, 30);
    const plane = new THREE.PlaneGeometry(30 * TILE, 30 * TILE).rotateX(-Math.PI / 2);
    this.floor = new THREE.Mesh(plane, new THREE.MeshStandardMaterial({ map: pattern, roughness: 1 }));
    this.floor.receiveShadow = true;
    this.scene.add(this.floor);
  }

  #path() {
    const geometry = new THREE.BufferGeometry();
    geometry.setAttribute("position", new THREE.BufferAttribute(new Float32Array(6 * PATH_POINTS), 3));
    geometry.setAttribute("color", new THREE.BufferAttribute(new Float32Array(8 * PATH_POINTS), 4));
    const corners = [];
    for (let i = 0; i + 1 < PATH_POINTS; i++) corners.push(2 * i, 2 * i + 1, 2 * i + 2, 2 * i + 1, 2 * i + 3, 2 * i + 2);
    geometry.setIndex(corners);
    const material = new THREE.MeshBasicMaterial({
      vertexColors: true, transparent: true, depthWrite: false, side: THREE.DoubleSide,
      polygonOffset: true, polygonOffsetFactor: -2, polygonOffsetUnits: -2,
    });
    this.path = new THREE.Mesh(geometry, material);
    this.path.frustumCulled = false;
    this.scene.add(this.path);
  }

  // A new body: one sphere per joint, one tube per bone, as thick as many joints hang on it.
  setBody({ parents, sides, hips, head }) {
    if (this.body) this.scene.remove(this.body.group);
    const below = parents.map(() => 1);
    for (let j = parents.length - 1; j > 0; j--) below[parents[j]] += below[j];
    this.body = { group: new THREE.Group(), parents, sides, below, head, hips, built: false };
    this.scene.add(this.body.group);
    this.view.fresh = true;
    this.root = null;
  }

  #build(pose) {
    const { group, parents, sides, below, head } = this.body;
    let low = Infinity, high = -Infinity;
    for (let i = 1; i < pose.length; i += 3) { low = Math.min(low, pose[i]); high = Math.max(high, pose[i]); }
    const size = Math.max(high - low, 0.3) / TALL;
    const material = {};
    for (const side of ["left", "right", "middle"]) {
      material[side] = new THREE.MeshStandardMaterial({ color: COLOURS[side], roughness: 0.45, metalness: 0.02 });
    }
    const trunk = (j) => below[j] > 4 && sides[j] === "middle";
    const radius = below.map((n, j) => size * (0.027 + 0.0068 * Math.min(n - 1, 4)) * (trunk(j) ? 1.4 : 1));
    const mesh = (geometry, side) => {
      const made = new THREE.Mesh(geometry, material[side]);
      made.castShadow = true;
      made.receiveShadow = true;
      group.add(made);
      return made;
    };
    this.body.balls = radius.map((r, j) => mesh(new THREE.SphereGeometry(r * (trunk(j) ? 1.02 : 1.18), 24, 16), sides[j]));
    this.body.tubes = parents.map((p, j) => p < 0 ? null :
      mesh(new THREE.CylinderGeometry(radius[j], Math.min(radius[p], 1.35 * radius[j]), 1, 24, 1, true), sides[j]));
    this.body.skull = head < 0 ? null : mesh(new THREE.SphereGeometry(0.105 * size, 32, 24), "middle");
    this.body.size = size;
    this.body.built = true;
  }

  setPose(pose) {
    if (!this.body.built) this.#build(pose);
    const { parents, balls, tubes, skull, head, size, hips } = this.body;
    const at = (j) => new THREE.Vector3(pose[3 * j], pose[3 * j + 1], pose[3 * j + 2]);
    const points = parents.map((_, j) => at(j));
    const y = new THREE.Vector3(0, 1, 0);
    parents.forEach((parent, j) => {
      balls[j].position.copy(points[j]);
      if (parent < 0) return;
      const way = points[j].clone().sub(points[parent]);
      const length = way.length();
      tubes[j].visible = length > 1e-4;
      tubes[j].position.copy(points[j]).add(points[parent]).multiplyScalar(0.5);
      tubes[j].scale.y = Math.max(length, 1e-4);
      if (length > 1e-4) tubes[j].quaternion.setFromUnitVectors(y, way.divideScalar(length));
      if (j === head) skull.position.copy(points[j]).addScaledVector(way, 0.055 * size);
    });
    this.root = points[0];
    if (this.view.fresh) {
      this.view.fresh = false;
      this.view.target.set(this.root.x, 0.9 * size, this.root.z);
      if (hips[0] > 0 && hips[1] > 0) { // half from the front
        const across = points[hips[0]].clone().sub(points[hips[1]]);
        this.view.azimuth = Math.atan2(-across.z, across.x) + 0.6;
      }
    }
  }

  // points: [{x, z, colour, share}] from old to new, metres.
  setPath(points) {
    const used = points.slice(-PATH_POINTS);
    const position = this.path.geometry.attributes.position, colour = this.path.geometry.attributes.color;
    const tone = new THREE.Color();
    used.forEach((point, i) => {
      const before = used[Math.max(i - 1, 0)], after = used[Math.min(i + 1, used.length - 1)];
      const dx = after.x - before.x, dz = after.z - before.z, length = Math.hypot(dx, dz) || 1;
      const wide = 0.014;
      for (const side of [0, 1]) {
        const sign = side ? -wide : wide;
        position.setXYZ(2 * i + side, point.x - (dz / length) * sign, 0.003, point.z + (dx / length) * sign);
        tone.set(point.colour);
        colour.setXYZW(2 * i + side, tone.r, tone.g, tone.b, 0.9 * point.share);
      }
    });
    position.needsUpdate = colour.needsUpdate = true;
    this.path.geometry.setDrawRange(0, Math.max(0, used.length - 1) * 6);
  }

  #orbit(canvas) {
    const held = new Map(); // fingers or the mouse
    let apart = 0;
    const spread = () => {
      const [a, b] = [...held.values()];
      return Math.hypot(a.x - b.x, a.y - b.y);
    };
    const nearer = (factor) => {
      this.view.distance = Math.min(12, Math.max(1.6, this.view.distance * factor));
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      held.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (held.size === 2) apart = spread();
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = held.get(event.pointerId);
      if (!last) return;
      if (held.size === 1) {
        this.view.azimuth -= 0.006 * (event.clientX - last.x);
        this.view.elevation = Math.min(1.4, Math.max(0.02, this.view.elevation + 0.006 * (event.clientY - last.y)));
      }
      held.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (held.size === 2) {
        nearer(apart / Math.max(spread(), 1));
        apart = spread();
      }
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, (event) => held.delete(event.pointerId));
    }
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      nearer(Math.exp(0.0012 * event.deltaY));
    }, { passive: false });
  }

  render(seconds) {
    const { view, camera, sun } = this;
    this.pace += 0.04 * (seconds - this.pace);
    if (this.pace > SLOW && this.sharpness > COARSEST) { // without a graphics card, fewer pixels
      this.sharpness = Math.max(COARSEST, 0.8 * this.sharpness);
      this.pace = 0;
      this.resize();
    }
    if (this.root) { // the camera evens out the body's path
      const share = 1 - Math.exp(-seconds / 0.35);
      view.target.x += share * (this.root.x - view.target.x);
      view.target.z += share * (this.root.z - view.target.z);
    }
    const flat = view.distance * Math.cos(view.elevation);
    camera.position.set(
      view.target.x + flat * Math.sin(view.azimuth),
      Math.max(0.1, view.target.y + view.distance * Math.sin(view.elevation)),
      view.target.z + flat * Math.cos(view.azimuth),
    );
    camera.lookAt(view.target);
    sun.target.position.set(view.target.x, 0.8, view.target.z);
    const right = view.azimuth + Math.PI / 2; // the light comes from the left of the one who looks
    sun.position.set(
      view.target.x - 3 * Math.sin(right) + 2 * Math.sin(view.azimuth), 6.5,
      view.target.z - 3 * Math.cos(right) + 2 * Math.cos(view.azimuth),
    );
    this.floor.position.set(TILE * Math.round(view.target.x / TILE), 0, TILE * Math.round(view.target.z / TILE));
    this.renderer.render(this.scene, camera);
  }
}
