// The line to the kernel: requests that are known to have arrived, updates in order, and what to think of silence.
//
// A request goes on the kernel's control channel where there is one, since a comm's messages wait for the cell that runs.
// Until the kernel says that they come there, they go by the comm as well; it heeds whichever comes first.

/**
 * @typedef {object} Model the part of an anywidget model that the widgets use
 * @property {(name: string) => any} get
 * @property {(name: string, value: any) => void} set
 * @property {(event: string, listener: (...args: any[]) => void) => void} on
 * @property {(event: string, listener: (...args: any[]) => void) => void} off
 * @property {any} [widget_manager] of JupyterLab's, where the notebook and the kernel can be found
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
const ENDS = ["restarting", "autorestarting", "terminating", "dead"]; // what a kernel's status is when its widgets are gone

/** @typedef {"connecting" | "connected" | "silent" | "gone"} State of the line; "gone": its kernel ended */

/** @param {unknown} one @param {unknown} other */
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

/**
 * @param {Model} model
 * @param {object} hooks
 * @param {(message: any, buffers: DataView[]) => void} hooks.receive
 * @param {(state: State) => void} hooks.change
 */
export function connect(model, { receive, change }) {
  const me = Math.random().toString(36).slice(2, 8);
  const kernel = model.widget_manager?.kernel;
  let state = /** @type {State} */ ("connecting");
  let count = 0;
  let arrived = 0; // number of the last request that the kernel has
  let proven = false; // requests do come on the control channel
  const wishes = /** @type {Map<string, number>} */ (new Map()); // by trait, the request that set it last
  let last = 0; // when the kernel answered last
  let closed = false;
  const open = /** @type {Map<number, {settle: (arrived: boolean) => void, timer: any}>} */ (new Map());
  let retry = /** @type {any} */ (null);

  /** @param {typeof state} next */
  function become(next) {
    if (closed || next === state || state === "gone") return;
    state = next;
    clearInterval(retry);
    if (state === "gone") for (const request of [...open.values()]) request.settle(false);
    if (state === "silent") retry = setInterval(() => post({ kind: "hello" }), 3000);
    change(state);
  }

  /** @param {any} content @param {ArrayBuffer[]} [buffers] */
  function post(content, buffers) {
    count += 1;
    const request = { ...content, mark: `${me}-${count}` };
    try {
      if (!control(request, buffers) || !proven) model.send(request, undefined, buffers);
    } catch {
      // the kernel was shut down and its end of the line is closed: it does not answer, that is all
    }
    return count;
  }

  /** Sends on the control channel; false where there is none. @param {any} content @param {ArrayBuffer[]} [buffers] */
  function control(content, buffers = []) {
    const comm = model.get("control_comm");
    if (!comm || typeof kernel?.sendControlMessage !== "function") return false;
    const header = {
      msg_id: `${me}-${count}-${Date.now()}`,
      msg_type: "chameleon_line",
      session: kernel.clientId,
      username: kernel.username,
      date: new Date().toISOString(),
      version: "5.3",
    };
    const message = {
      channel: "control",
      header,
      parent_header: {},
      metadata: {},
      content: { comm_id: comm, content },
    };
    kernel.sendControlMessage({ ...message, buffers }).done.catch(() => {}); // when the kernel ends before it answers
    return true;
  }

  /** @param {unknown} _ @param {string} status of the kernel, or of its connection */
  function heed(_, status) {
    if (ENDS.includes(status) || kernel.isDisposed) become("gone");
    else if (status === "disconnected") become("silent");
    else if (status === "connected" && state === "silent") post({ kind: "hello" });
  }
  const signals = [kernel?.statusChanged, kernel?.connectionStatusChanged, kernel?.disposed].filter(Boolean);
  for (const signal of signals) signal.connect(heed);

  /** @param {any} message @param {DataView[]} buffers */
  function listen(message, buffers) {
    last = performance.now();
    become("connected");
    if (message.kind === "line") {
      arrived = Math.max(arrived, message.requests[me] ?? 0);
      proven ||= message.control.includes(me);
      for (const [name, value] of Object.entries(message.traits)) {
        // What was set here later than what the kernel speaks of will be answered, too.
        if ((wishes.get(name) ?? 0) <= arrived && !same(model.get(name), value)) model.set(name, value);
      }
    }
    for (const [mark, request] of open) if (mark <= arrived) request.settle(true);
    receive(message, buffers ?? []);
  }
  model.on("msg:custom", listen);

  return {
    get state() {
      return state;
    },
    /** Number of the last request that was sent, and of the last that the kernel has. */
    get lastRequest() {
      return count;
    },
    get lastArrival() {
      return arrived;
    },
    /** Changes a trait, here and in the kernel. @param {string} name @param {any} value */
    set(name, value) {
      model.set(name, value);
      wishes.set(name, post({ kind: "set", traits: { [name]: value } }));
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
      for (const signal of signals) signal.disconnect(heed);
      for (const { timer } of open.values()) clearTimeout(timer);
      model.off("msg:custom", listen);
    },
  };
}
