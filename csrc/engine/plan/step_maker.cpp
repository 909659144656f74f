#include "step_maker.h"

#include "engine/steps/int8/quad_steps.h"
#include "engine/steps/planes_steps.h"
#include "frame_step.h"
#include "planned_kind.h"

namespace secateur::engine {

void StepMaker::make(const Record& r) {
  steps_ = &plan_.image_steps_;
  const Op* op = r.op >= 0 ? &plan_.program_.ops()[r.op] : nullptr;
  const std::string name = op ? op->name : "input";
  switch (r.kind) {
    case RecordKind::kPack: return add_framed(make_pack(shop_, "input", r.port, r.y), r.y);
    case RecordKind::kUnpack: return add(make_unpack(shop_, name, r.x, r.port));
    case RecordKind::kRepack: return add(make_repack(shop_, name, r.x, r.y));
    case RecordKind::kCopy:
      return add(is_bytes(r.y) ? make_quad_copy(shop_, name, r.x, r.y, r.first, {})
                               : make_copy(shop_, name, r.x, r.y, r.first, {}));
    case RecordKind::kOp: break;
  }
  if (!value(op->output).planes() && !value(op->inputs[0]).planes() && !records_.in_image[r.op])
    steps_ = &plan_.batch_steps_;
  planned(*op).make(*this, *op, r);
}

void StepMaker::add_framed(std::unique_ptr<FramedStep> step, int y) {
  auto frame = std::make_unique<FrameStep>(*step, plan_.stores_[y], plan_.kernels_);
  add(std::move(step));
  add(std::move(frame));
}

void StepMaker::add_conv(std::unique_ptr<ActiveConvStep> conv, int y) {
  plan_.convs_.push_back(conv.get());
  add(std::make_unique<ActiveListStep>(*conv));
  add_framed(std::move(conv), y);
}

void StepMaker::add_conv(std::unique_ptr<BlockConvStep> conv, int y) {
  plan_.block_convs_.push_back(conv.get());
  add_framed(std::move(conv), y);
}

}  // namespace secateur::engine
