// Runs a TensorFlow.js graph model in node, on the backend of pure JavaScript:
//
//   node tensorflowjs.cjs FOLDER < inputs.json > outputs.json
//
// Both are {name: {shape, values}}. NODE_PATH says where @tensorflow/tfjs is.

const fs = require("fs");
const path = require("path");
console.warn = () => {};  // that tfjs-node would be faster
const tf = require("@tensorflow/tfjs");

function read(folder) {
  const file = path.join(folder, "model.json");
  const model = JSON.parse(fs.readFileSync(file, "utf8"));
  const parts = model.weightsManifest.flatMap((group) => group.paths)
                    .map((name) => fs.readFileSync(path.join(folder, name)));
  return {
    modelTopology: model.modelTopology,
    signature: model.signature,
    weightSpecs: model.weightsManifest.flatMap((group) => group.weights),
    weightData: Uint8Array.from(Buffer.concat(parts)).buffer,
  };
}

async function main(folder) {
  await tf.setBackend("cpu");
  const model = await tf.loadGraphModel({load: async () => read(folder)});
  const inputs = {};
  const given = JSON.parse(fs.readFileSync(0, "utf8"));
  for (const [name, {shape, values}] of Object.entries(given)) {
    inputs[name] = tf.tensor(Float32Array.from(values), shape);
  }
  const names = Object.keys(model.modelSignature.outputs);
  const tensors = [await model.executeAsync(inputs, names)].flat();
  const outputs = {};
  tensors.forEach((tensor, index) => {
    const values = Array.from(tensor.dataSync());
    outputs[names[index]] = {shape: tensor.shape, values};
  });
  process.stdout.write(JSON.stringify(outputs));
}

main(process.argv[2]).catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
