// The line to the kernel: requests that are known to have arrived, updates in order, and what to think of silence.

/**
 * @typedef {object} Model the part of an anywidget model that the widgets use
 * @property {(name: string) => any} get
 * @property {(name: string, value: any) => void} set
 * @property {() => void} save_changes
 * @property {(event: string, listener: (...args: any[]) => void) => void} on
 * @property {(event: string, listener: (...args: any[]) => void) => void} off
 * @property {any} [widget_manager] of JupyterLab's, where the notebook can be found
 * @property {(content: any, callbacks?: any, buffers?: ArrayBuffer[]) => void} send
 */

/**
 * A buffer of the kernel as numbers.
 * @template {Uint8ArrayConstructor | Int32ArrayConstructor | Uint32ArrayConstructor | Float32ArrayConstructor | Float64ArrayConstructor} T
 * @param {T} kind @param {DataView} view
 * @returns {InstanceType<T>}
 */
export const numbers = (kind, view) =>
  /** @type {any} */ (
    new kind(/** @type {ArrayBuffer} */ (view.buffer).slice(view.byteOffset, view.byteOffset + view.byteLength))
  );

export const PATIENCE = 2000; // milliseconds without an answer before the kernel is called silent

/**
 * @param {Model} model
 * @param {object} hooks
 * @param {(message: any, buffers: DataView[]) => void} hooks.receive
 * @param {(state: "connecting" | "connected" | "silent") => void} hooks.change
 */
export function connect(model, { receive, change }) {
  const me = Math.random().toString(36).slice(2, 8);
  let state = /** @type {"connecting" | "connected" | "silent"} */ ("connecting");
  let count = 0;
  let last = 0; // when the kernel answered last
  let closed = false;
  const open = /** @type {Map<number, {settle: (arrived: boolean) => void, timer: any}>} */ (new Map());
  let retry = /** @type {any} */ (null);

  /** @param {typeof state} next */
  function become(next) {
    if (closed || next === state) return;
    state = next;
    clearInterval(retry);
    if (state === "silent") retry = setInterval(() => post({ kind: "hello" }), 3000);
    change(state);
  }

  /** @param {any} content @param {ArrayBuffer[]} [buffers] */
  function post(content, buffers) {
    count += 1;
    try {
      model.send({ ...content, mark: `${me}-${count}` }, undefined, buffers);
    } catch {
      // the kernel was shut down and its end of the line is closed: it does not answer, that is all
    }
    return count;
  }

  /** @param {any} message @param {DataView[]} buffers */
  function listen(message, buffers) {
    last = performance.now();
    become("connected");
    const arrived = message.kind === "line" ? (message.requests[me] ?? 0) : 0;
    for (const [mark, request] of open) if (mark <= arrived) request.settle(true);
    receive(message, buffers ?? []);
  }
  model.on("msg:custom", listen);

  return {
    get state() {
      return state;
    },
    /**
     * Sends a request; resolves to whether the kernel has it.
     * @param {any} content
     * @param {ArrayBuffer[]} [buffers]
     * @returns {Promise<boolean>}
     */
    request(content, buffers) {
      const posted = performance.now();
      const mark = post(content, buffers);
      return new Promise((resolve) => {
        /** @param {boolean} arrived */
        const settle = (arrived) => {
          clearTimeout(timer);
          open.delete(mark);
          if (!arrived) become("silent");
          resolve(arrived);
        };
        const timer = setTimeout(() => settle(last > posted), PATIENCE);
        open.set(mark, { settle, timer });
      });
    },
    /** Milliseconds since the kernel said something. */
    quiet: () => performance.now() - last,
    close() {
      closed = true;
      clearInterval(retry);
      for (const { timer } of open.values()) clearTimeout(timer);
      model.off("msg:custom", listen);
    },
  };
}
