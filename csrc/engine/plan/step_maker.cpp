#include "step_maker.h"

#include "engine/steps/int8/int8_steps.h"
#include "engine/steps/planes_steps.h"
#include "halo_step.h"
#include "planned_kind.h"

namespace secateur::engine {

void StepMaker::make(const Record& r) {
  steps_ = &made_.image;
  const Op* op = r.op >= 0 ? &program_.ops()[r.op] : nullptr;
  const std::string name = op ? op->name : "input";
  switch (r.kind) {
    case RecordKind::kPack: return add_with_halo(make_pack(context_, "input", r.port, r.y), r.y);
    case RecordKind::kUnpack: return add(make_unpack(context_, name, r.x, r.port));
    case RecordKind::kRepack: return add(make_repack(context_, name, r.x, r.y));
    case RecordKind::kCopy:
      return add(is_bytes(r.y) ? make_int8_copy(context_, name, r.x, r.y, r.first, {})
                               : make_copy(context_, name, r.x, r.y, r.first, {}));
    case RecordKind::kOp: break;
  }
  if (!value(op->output).planes() && !value(op->inputs[0]).planes() && !records_.in_image[r.op]) steps_ = &made_.batch;
  planned(*op).make(*this, *op, r);
}

void StepMaker::add_with_halo(std::unique_ptr<HaloedStep> step, int y) {
  auto halo = std::make_unique<HaloStep>(*step, context_.stores[y], context_.kernels);
  add(std::move(step));
  add(std::move(halo));
}

void StepMaker::add_conv(std::unique_ptr<FloatConvStep> conv, int y) {
  made_.convs.push_back(conv.get());
  add(std::make_unique<NonzeroListStep>(*conv));
  add_with_halo(std::move(conv), y);
}

void StepMaker::add_conv(std::unique_ptr<Int8ConvStep> conv, int y) {
  made_.int8_convs.push_back(conv.get());
  add_with_halo(std::move(conv), y);
}

}  // namespace secateur::engine
