// Bundles each widget into ../chameleon_widgets/static, where it is committed. The same input gives the same bytes.
import { build } from "esbuild";

await build({
  entryPoints: [
    "chat_cell",
    "reconstruction_viewer",
    "codebook_atlas",
    "code_surgery",
    "run_panel",
    "compare_panel",
  ].flatMap((name) => [`src/${name}.js`, `src/${name}.css`]),
  outdir: process.argv[2] ?? "../chameleon_widgets/static",
  bundle: true,
  format: "esm",
  target: ["es2022", "chrome111", "firefox121", "safari16.4"],
  charset: "utf8",
  minify: true,
  legalComments: "none",
  logLevel: "info",
});
