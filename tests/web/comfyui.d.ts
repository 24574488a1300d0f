/** Types of ComfyUI's page as far as the pack uses it. All of them are global, for the JSDoc in web/. */

type ComfyPoint = [x: number, y: number];

interface ComfyWidget {
  name: string;
  options?: { values?: unknown; advanced?: boolean };
  label?: string;
  /** True if the classic canvas folds it. */
  advanced?: boolean;
  /** True if the classic canvas leaves it out. */
  hidden?: boolean;
  value: unknown;
  serialize?: boolean;
  element?: HTMLElement;
  callback?: (...args: any[]) => unknown;
  onRemove?: (...args: any[]) => unknown;
  computeSize?: (width?: number) => ComfyPoint;
  computeLayoutSize?: unknown;
}

interface ComfyDOMWidgetOptions {
  serialize?: boolean;
  hideOnZoom?: boolean;
  margin?: number;
  getMinHeight?: () => number;
  getValue?: () => string;
  setValue?: (value: unknown) => void;
}

interface ComfySlot {
  name: string;
}

interface ComfyNode {
  id: number | string;
  type: string;
  comfyClass?: string;
  pos: ArrayLike<number> & Iterable<number>;
  size: ArrayLike<number> & Iterable<number>;
  graph: ComfyGraph | null;
  subgraph?: ComfyGraph;
  widgets?: ComfyWidget[];
  inputs: ComfySlot[];
  outputs: ComfySlot[];
  /** True while its advanced widgets are unfolded. */
  showAdvanced?: boolean;
  isWidgetVisible(widget: ComfyWidget): boolean;
  isSubgraphNode?(): boolean;
  computeSize(): ArrayLike<number> & Iterable<number>;
  setSize(size: ComfyPoint): void;
  findInputSlot(name: string): number;
  getInputNode(slot: number): ComfyNode | null;
  isInputConnected(slot: number): boolean;
  isAnyOutputConnected(): boolean;
  findOutputSlot(name: string): number;
  connect(output: number, node: ComfyNode, input: number): unknown;
  addWidget(type: "button", name: string, value: null, callback: () => void): ComfyWidget;
  removeWidget(widget: ComfyWidget): void;
  addDOMWidget(name: string, type: string, element: HTMLElement, options: ComfyDOMWidgetOptions): ComfyWidget;
  onRemoved?: (...args: any[]) => unknown;
  onConfigure?: (...args: any[]) => unknown;
  onConnectionsChange?: (...args: any[]) => unknown;
  onDragOver?: (event: DragEvent) => boolean;
  onDragDrop?: (event: DragEvent) => boolean;
}

interface ComfyGraph {
  /** Of the workflow, for the root graph. Missing in the oldest supported pages. */
  id?: string;
  nodes: ComfyNode[];
  add(node: ComfyNode): unknown;
  getNodeOnPos(x: number, y: number): ComfyNode | null;
  getNodeById(id: number | string): ComfyNode | null | undefined;
  serialize(): unknown;
}

/** Undo history of a workflow. Changes between `beforeChange` and `afterChange` are one step. */
interface ComfyChangeTracker {
  /** The workflow after its last step. */
  activeState: unknown;
  changeCount: number;
  beforeChange(): void;
  afterChange(): void;
  /** Tells the page that `activeState` has changed. */
  updateModified(): void;
}

interface ComfyCanvas {
  /** The graph on display: the root graph, or an open subgraph. */
  graph: ComfyGraph;
  /** x, y, width and height of the visible part, in graph coordinates. */
  visible_area: ArrayLike<number> & Iterable<number>;
  graph_mouse: ArrayLike<number> & Iterable<number>;
  default_connection_color_byType: Record<string, string>;
  setDirty(foreground: boolean, background: boolean): void;
  /** Moves nodes, in Vue nodes too; `applyNodePositions` in newer pages. */
  repositionNodesVueMode?(places: { node: ComfyNode; newPos: { x: number; y: number } }[]): void;
  applyNodePositions?: unknown;
  centerOnNode(node: ComfyNode): void;
  convertEventToCanvasOffset(event: MouseEvent): ArrayLike<number> & Iterable<number>;
}

/** Input's type, or a menu's options, and what else the server says of it, by the input's name. */
type ComfyInputSpec = [type: string | string[], options?: Record<string, any>];

interface ComfyInputSpecs {
  required?: Record<string, ComfyInputSpec>;
  optional?: Record<string, ComfyInputSpec>;
}

interface ComfySidebarTab {
  id: string;
  icon: string;
  title: string;
  tooltip: string;
  type: "custom";
  render(container: HTMLElement): void;
  destroy(): void;
}

interface ComfyExtension {
  name: string;
  aboutPageBadges?: { label: string; url: string; icon: string }[];
  commands?: { id: string; label: string; menubarLabel?: string; icon?: string; function: () => unknown }[];
  menuCommands?: { path: string[]; commands: string[] }[];
  init?(): Promise<void>;
  setup?(): Promise<void>;
  getCustomWidgets?(): Record<string, (node: ComfyNode, name: string, spec: any) => { widget: ComfyWidget }>;
  nodeCreated?(node: ComfyNode): void;
  afterConfigureGraph?(): unknown;
}

interface ComfyApp {
  graph: ComfyGraph;
  /** Missing in the oldest supported page, where `graph` is the root graph. */
  rootGraph?: ComfyGraph;
  canvas: ComfyCanvas;
  extensionManager: {
    setting: { get(id: string): string | undefined };
    workflow?: { activeWorkflow?: { changeTracker?: ComfyChangeTracker } | null };
    toast: { add(message: { severity: "error" | "info"; summary: string; detail: string; life?: number }): void };
    registerSidebarTab(tab: ComfySidebarTab): void;
  };
  registerExtension(extension: ComfyExtension): void;
  loadGraphData(workflow: object): Promise<unknown>;
  refreshComboInNodes(): Promise<unknown>;
}

interface ComfyApi {
  fetchApi(route: string, options?: RequestInit): Promise<Response>;
  apiURL(route: string): string;
  addEventListener(type: string, listener: (event: CustomEvent) => void): void;
}

interface Window {
  LGraphCanvas: { link_type_colors: Record<string, string> };
  LiteGraph: {
    WIDGET_BGCOLOR: string;
    WIDGET_OUTLINE_COLOR: string;
    WIDGET_TEXT_COLOR: string;
    WIDGET_SECONDARY_TEXT_COLOR: string;
    vueNodesMode?: boolean;
    createNode(type: string): ComfyNode | null;
    registered_node_types: Record<string, { nodeData?: { input?: ComfyInputSpecs } }>;
  };
}

declare module "*/scripts/app.js" {
  export const app: ComfyApp;
}

declare module "*/scripts/api.js" {
  export const api: ComfyApi;
}
