// Uploaded pictures stay in this browser (IndexedDB), so that Back and reload find them; the newest are kept.

const KEPT = 20;
const SENT_AS_THEY_ARE = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"];
const UNSEEN = /\.(tiff?|hei[cf]|jxl|jp2|p[gnp]m)$/i; // the service may read what a browser does not show
const open = new Map(); // key -> {key, name, blob, url} of this tab

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

async function store(mode) {
  const request = indexedDB.open("cirray", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("uploads", { keyPath: "key" });
  return (await done(request)).transaction("uploads", mode).objectStore("uploads");
}

function opened({ key, name, blob }) {
  if (!open.has(key)) open.set(key, { key, name, blob, url: URL.createObjectURL(blob) });
  return open.get(key);
}

// Keep a picture and return its key. Without storage (some private windows) it lives as long as the tab.
async function keep(blob, name) {
  const key = `${Date.now().toString(36).padStart(9, "0")}-${Math.random().toString(36).slice(2, 8)}`;
  opened({ key, name, blob });
  try {
    const uploads = await store("readwrite");
    uploads.put({ key, name, blob });
    const keys = await done(uploads.getAllKeys());
    for (const old of keys.slice(0, -KEPT)) uploads.delete(old);
  } catch {}
  return key;
}

// The picture of a key, or null when this browser has it no more.
export async function upload(key) {
  if (open.has(key)) return open.get(key);
  try {
    const found = await done((await store("readonly")).get(key));
    return found ? opened(found) : null;
  } catch {
    return null;
  }
}

// Make a chosen file a reference. What the service would not take (other formats, too many bytes or pixels) is drawn
// anew as a JPEG over white; a file that shows no picture here is refused, or left to the service by its name.
export async function accept(file, { max_body_bytes: bytes, max_pixels: pixels }) {
  const name = file.name || "your picture";
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
    const fits = file.size <= bytes - 65536 && image.naturalWidth * image.naturalHeight <= pixels;
    const blob = fits && SENT_AS_THEY_ARE.includes(file.type) ? file : await redrawn(image);
    return { upload: await keep(blob, name), name };
  } catch {
    if (UNSEEN.test(name) && file.size <= bytes - 65536) return { upload: await keep(file, name), name };
    throw new Error(`“${name}” is not a picture that this browser can open. Choose a JPEG, PNG, WebP, GIF or BMP file.`);
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

function redrawn(image) {
  const scale = Math.min(1, 1600 / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  const brush = canvas.getContext("2d");
  brush.fillStyle = "white";
  brush.fillRect(0, 0, canvas.width, canvas.height);
  brush.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("not drawn"))), "image/jpeg", 0.92),
  );
}
